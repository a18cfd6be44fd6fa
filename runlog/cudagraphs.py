"""CUDA graphs: the kernels of an update, recorded once and launched together from then on."""

import itertools
from collections.abc import Callable

import torch

from runlog.terminal import UserError, reason

WARM_UP_CALLS = 3  # load libraries, compile, make the optimiser's state


def can_run_on(device: torch.device) -> bool:
    """Whether there are CUDA graphs on this device."""
    return device.type == "cuda"


class Recording:
    """One CUDA graph, and the stream on which its block warms up."""

    def __init__(self):
        self.graph = torch.cuda.CUDAGraph()
        self.stream = torch.cuda.Stream()

    def warm_up(self, block: Callable, arguments: list):
        """Calls the block without capturing it."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            out = block(*arguments)
        torch.cuda.current_stream().wait_stream(self.stream)
        return out

    def capture(self, block: Callable, arguments: list):
        """Records the block without running it; returns the outputs that each replay fills."""
        with torch.cuda.graph(self.graph):
            return block(*arguments)

    def replay(self) -> None:
        self.graph.replay()


def graphed(block: Callable) -> Callable:
    """`block` as one CUDA graph, which always works on one copy of its inputs: three calls warm up
    on a side stream, the fourth is captured, and from then on the graph is replayed.

    block: tensors, or dicts of tensors, of the same shapes at every call -> tensors. It must do the
    same work at every call, in place, on the tensors that it keeps: no changing numbers from the
    host, no random numbers, nothing that waits for the device. The outputs of a call are
    overwritten by the next one. Raises UserError if it cannot be captured.
    """
    recording = Recording()
    calls = itertools.count()
    kept = {}

    def copy_in(name, x: torch.Tensor | dict) -> torch.Tensor | dict:
        if isinstance(x, dict):
            return {key: copy_in((name, key), value) for key, value in x.items()}
        if name not in kept:
            kept[name] = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        return kept[name].copy_(x)

    def call(*inputs):
        number = next(calls)
        arguments = [copy_in(i, x) for i, x in enumerate(inputs)]
        if number < WARM_UP_CALLS:
            return recording.warm_up(block, arguments)
        if number == WARM_UP_CALLS:
            try:
                kept["out"] = recording.capture(block, arguments)
            except Exception as error:  # ending the capture raises too: the first is the cause
                cause = reason(error.__context__ or error)
                raise UserError(
                    f"--cudagraphs: the CUDA graph cannot be captured ({cause}); "
                    "use --no-cudagraphs, which gives the same training, more slowly"
                ) from error
        recording.replay()
        return kept["out"]

    return call


def graphed_in_turn(make_block: Callable[[int], Callable]) -> Callable:
    """Like `graphed`, for work that depends on a number on the host: one graph for each of its
    values. That number is the first argument: call(number, *inputs) runs
    make_block(number)(*inputs)."""
    graphs = {}

    def call(number: int, *inputs):
        if number not in graphs:
            graphs[number] = graphed(make_block(number))
        return graphs[number](*inputs)

    return call
