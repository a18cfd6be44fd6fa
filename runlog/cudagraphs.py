"""CUDA graphs."""

import itertools

import torch


def graphed(block):
    """`block` as one CUDA graph. It always works on one copy of its inputs: three calls warm up on
    a side stream, the fourth is captured, and from then on the graph is replayed.

    block: (batches, noise) -> named tensors. It must do the same work at every call, in place, on
    the tensors that it keeps. What a call returns is overwritten by the next one."""
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    kept = {}
    calls = itertools.count()

    def call(batches: dict[str, torch.Tensor], noise: torch.Tensor) -> dict[str, torch.Tensor]:
        inputs = {**batches, "noise": noise}
        number = next(calls)
        for name, x in inputs.items():
            kept.setdefault(name, torch.empty(x.shape, dtype=x.dtype, device=x.device)).copy_(x)
        arguments = {name: kept[name] for name in batches}, kept["noise"]
        if number < 3:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                out = block(*arguments)
            torch.cuda.current_stream().wait_stream(stream)
            return out
        if number == 3:
            with torch.cuda.graph(graph):
                kept["out"] = block(*arguments)
        graph.replay()
        return kept["out"]

    return call
