"""Compiled updates on the CPU: a function of one seed is run for every seed of a batch, by worker
threads of one core each (docs/performance.md).

On a GPU a batch of seeds is one stack of tensors, and each operation processes all of it. On a CPU
this gains nothing: five seeds together exceed the core's cache, and threads that share one product
wait for each other, for very long where another process keeps a core busy. Here the stacked tensors
are therefore only the storage. The function of a single seed is compiled once, for one thread, and
called with each seed's slices; each worker takes the next update of whichever seed is ready, and no
thread waits inside an update. A seed thus computes bit for bit the same alone and in a batch,
whatever the number of threads.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
import torch.nn as nn
import torch.utils._pytree as pytree
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from runlog import compiler

# C++ also for the code around the kernels: faster than Python, and releases Python's lock
OPTIONS = {"cpp_wrapper": True, "cpp.threads": 1}

# tanh(x) = x P(x^2) / Q(x^2) for |x| <= 9 (scripts/fit_tanh.py), lowest power first
TANH_BOUND = 9.0
TANH_P = (0.999999979, 0.133810266, 0.00349558925, 2.06090978e-05, 1.33546774e-08)
TANH_Q = (1.0, 0.467143422, 0.0258769867, 0.000328563653, 7.776566e-07)


def can_run_on(device: torch.device) -> bool:
    """Whether compiled updates run seed by seed on this device."""
    switched_off = os.environ.get("TORCHDYNAMO_DISABLE") == "1"  # torch's switch: no compilation
    return device.type == "cpu" and not switched_off


def rational_tanh(x: torch.Tensor) -> torch.Tensor:
    """tanh to within 7 units in the last place of float32, in [-1, 1]; several times as fast as the
    version that torch.compile vectorises."""
    x = x.clamp(-TANH_BOUND, TANH_BOUND)
    square = x * x
    p = TANH_P[-1]
    for coefficient in TANH_P[-2::-1]:
        p = p * square + coefficient
    q = TANH_Q[-1]
    for coefficient in TANH_Q[-2::-1]:
        q = q * square + coefficient
    return (x * p / q).clamp(-1, 1)


def _tanh(x: torch.Tensor) -> torch.Tensor:
    return rational_tanh(x) if x.dtype == torch.float32 else NotImplemented


# Replaced in compiled code; derivatives are those of the original.
DECOMPOSITIONS = {torch.ops.aten.tanh.default: _tanh}


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _of_seed(argument, axis: int | None, i: int):
    """Seed i's part of an argument: a tensor or a dict of tensors with seeds along `axis`; None: an
    argument shared by all seeds."""
    if axis is None:
        return argument
    if isinstance(argument, dict):
        return {key: _of_seed(value, axis, i) for key, value in argument.items()}
    return argument.select(axis, i).contiguous()  # compiled code expects one layout


def _begin(all_started: threading.Barrier) -> None:
    """Initialises a worker: its products run in its own thread and start no others."""
    torch.set_num_threads(1)
    all_started.wait()


class SeedBySeed:
    """Runs functions of `single`, a module of one seed, for each seed of `stacked`, the same module
    with a leading seed axis in every tensor.

    Tensors without that axis, such as the step count of an optimiser, are shared by the seeds: a
    function must change them in the same way for each seed. The stacked tensors are the storage, so
    other code that changes them, such as loading a checkpoint, must do so in place. `single` is
    only used to trace the functions; the values of its tensors do not matter. Uses as many threads
    as torch.get_num_threads() returns at the start, but no more than there are seeds.
    """

    def __init__(self, stacked: nn.Module, single: nn.Module):
        self.single = _tensors(single)
        own = {}
        self.common = {}  # name -> the stacked module's tensor
        for name, tensor in _tensors(stacked).items():
            tensor = tensor.detach()
            if tensor.dim() == self.single[name].dim():
                self.common[name] = tensor
            else:
                own[name] = tensor
        self.num_seeds = len(next(iter(own.values())))
        self.of_seed = []
        for i in range(self.num_seeds):
            tensors = {name: tensor[i] for name, tensor in own.items()}
            tensors |= {name: tensor.clone() for name, tensor in self.common.items()}
            self.of_seed.append(tensors)
        # the addresses of the parameters, to detect that they were moved
        self.places = [(p, p.data_ptr()) for p in stacked.parameters()]
        num_threads = torch.get_num_threads()
        num_workers = min(self.num_seeds, num_threads)
        self.workers = None
        if num_workers > 1:
            self.workers = ThreadPoolExecutor(num_workers, "seed")
            # All start now: each sets MKL's number of threads, which applies to the whole process.
            all_started = threading.Barrier(num_workers)
            for started in [self.workers.submit(_begin, all_started) for _ in range(num_workers)]:
                started.result()
            torch.set_num_threads(num_threads)

    def compiled(self, function: Callable, *, seed_axes: Sequence[int | None]) -> "PerSeed":
        """`function` of the single module, for all seeds. seed_axes: the seed axis of each argument
        (None: it has none and is a constant of the compiled code)."""
        return PerSeed(self, function, seed_axes)

    def run(self, steps: Callable[[int, int], None], length: int) -> None:
        """Calls steps(i, 0), ..., steps(i, length - 1) for each seed i: in this order within a
        seed, and concurrently for as many seeds as there are workers.

        Raises the first error of a step once no seed is running any more; the state of the seeds is
        then undefined. Raises RuntimeError if the stacked parameters have been moved.
        """
        if any(parameter.data_ptr() != place for parameter, place in self.places):
            raise RuntimeError("the stacked module was moved or converted; make a new one instead")
        for tensors in self.of_seed:
            for name, tensor in self.common.items():
                tensors[name].copy_(tensor)
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)  # MKL has one thread count for the whole process
        try:
            if self.workers is None:
                for i in range(self.num_seeds):
                    for step in range(length):
                        steps(i, step)
            else:
                self._run_in_workers(steps, length)
        finally:
            torch.set_num_threads(num_threads)
        for name, tensor in self.common.items():
            tensor.copy_(self.of_seed[0][name])

    def _run_in_workers(self, steps: Callable[[int, int], None], length: int) -> None:
        failed = threading.Event()

        def advance(i: int, step: int) -> Future | None:
            """One step; then the seed is queued after the others. Returns what to wait for."""
            if failed.is_set():
                return None
            try:
                steps(i, step)
            except BaseException:
                failed.set()
                raise
            if step + 1 == length:
                return None
            return self.workers.submit(advance, i, step + 1)

        waiting = [self.workers.submit(advance, i, 0) for i in range(self.num_seeds)]
        errors = []
        for future in waiting:
            while future is not None:
                try:
                    future = future.result()
                except BaseException as error:  # from the step, or an interruption of the wait
                    failed.set()
                    errors.append(error)
                    if future.done() and future.exception() is not None:
                        break
        if errors:
            raise errors[0]


class PerSeed:
    """A function compiled for one seed, with the arguments and outputs of all seeds."""

    def __init__(self, seeds: SeedBySeed, function: Callable, axes: Sequence[int | None]):
        self.seeds = seeds
        self.function = function
        self.axes = axes
        self.variants = {}  # constants and shapes -> code, names of its tensors, form of its output

    def __call__(self, *arguments):
        """The function's outputs, tensors or dicts of tensors, with a leading seed axis."""
        return self.in_order([arguments])[0]

    @torch.no_grad()
    def in_order(self, calls: Sequence[tuple]) -> list:
        """The outputs of several calls, each of which sees the changes of the one before. Seeds do
        not wait for each other between calls."""
        codes = [self._code(arguments) for arguments in calls]
        outputs = [[None] * self.seeds.num_seeds for _ in calls]

        def step(i: int, number: int) -> None:
            code, names, _ = codes[number]
            tensors = self.seeds.of_seed[i]
            leaves = self._leaves(calls[number], i)
            outputs[number][i] = code(*[tensors[name] for name in names], *leaves)

        self.seeds.run(step, len(calls))
        stacked = []
        for (_, _, form), of_seeds in zip(codes, outputs, strict=True):
            leaves = [torch.stack(parts) for parts in zip(*of_seeds, strict=True)]
            stacked.append(pytree.tree_unflatten(leaves, form))
        return stacked

    def _parts(self, arguments: tuple, i: int) -> list:
        return [_of_seed(x, axis, i) for x, axis in zip(arguments, self.axes, strict=False)]

    def _leaves(self, arguments: tuple, i: int) -> list[torch.Tensor]:
        """Seed i's tensors among the arguments."""
        leaves = pytree.tree_leaves(self._parts(arguments, i))
        return [leaf for leaf in leaves if torch.is_tensor(leaf)]

    def _code(self, arguments: tuple) -> tuple[Callable, list[str], pytree.TreeSpec]:
        """The compiled code for these constants and shapes, compiled with the first seed's part."""
        if len(arguments) > len(self.axes):
            raise TypeError(f"{len(arguments)} arguments, but axes for {len(self.axes)}")
        # trailing arguments with defaults may be left out
        constants = tuple(x for x, axis in zip(arguments, self.axes, strict=False) if axis is None)
        shapes = tuple(leaf.shape for leaf in self._leaves(arguments, 0))
        key = (constants, shapes)
        if key not in self.variants:
            self.variants[key] = self._compile(arguments)
        return self.variants[key]

    def _compile(self, arguments: tuple) -> tuple[Callable, list[str], pytree.TreeSpec]:
        compiler.say_compiling()
        parts, form_of_parts = pytree.tree_flatten(self._parts(arguments, 0))
        state = self.seeds.single
        form = None

        def flat(*inputs):
            """The function of a flat list: the module's tensors, which it uses implicitly, and
            those among its arguments."""
            nonlocal form
            given = iter(inputs[len(state) :])
            leaves = [next(given) if torch.is_tensor(part) else part for part in parts]
            with torch.enable_grad():
                out = self.function(*pytree.tree_unflatten(leaves, form_of_parts))
            leaves, form = pytree.tree_flatten(out)
            return leaves

        tensors = [part for part in parts if torch.is_tensor(part)]
        # torch looks up compiled code on disk only within such a context
        with tracing(TracingContext(FakeTensorMode(shape_env=ShapeEnv()))):
            graph = make_fx(flat, decomposition_table=DECOMPOSITIONS)(*state.values(), *tensors)
            names = self._drop_unused(graph)
            example = [self.seeds.of_seed[0][name].clone() for name in names] + tensors
            code = torch._inductor.compile(graph, example, options=OPTIONS)
        return code, names, form

    def _drop_unused(self, graph: torch.fx.GraphModule) -> list[str]:
        """Removes the module's tensors that the function does not use from the graph's inputs;
        returns the names of the others."""
        names = []
        inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
        for name, node in zip(self.seeds.single, inputs, strict=False):
            if node.users:
                names.append(name)
            else:
                graph.graph.erase_node(node)
        graph.recompile()
        return names


def in_order(function: Callable, calls: Sequence[tuple]) -> list:
    """The outputs of calls of a function, one after the other; for a PerSeed the seeds do not wait
    for each other."""
    if isinstance(function, PerSeed):
        return function.in_order(calls)
    return [function(*arguments) for arguments in calls]
