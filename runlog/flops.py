"""Floating-point operations that a network's training takes per sample.

They are counted on the graph of elementary operations that torch records of a forward and a
backward pass, so that any activation, norm and product of branches is counted as it is computed:

- a product of matrices (m, k) and (k, n) counts 2 m k n;
- every other operation counts one per output number, whether it is a sum, product, division,
  comparison, selection, exponential or sine;
- a sum, mean or variance counts one per input number;
- moving, joining and creating numbers counts nothing.

The loss and the optimiser are not counted.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch._decomp import core_aten_decompositions
from torch.func import functional_call
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx

PRODUCTS = {"mm", "bmm"}
SUMS = {"sum", "mean", "var", "var_mean", "amax", "amin", "prod"}
FREE = {
    *("alias", "clone", "copy", "_to_copy", "detach"),
    *("view", "_unsafe_view", "permute", "expand", "squeeze", "unsqueeze", "slice", "select"),
    *("split", "split_with_sizes", "unbind", "cat", "stack", "slice_scatter", "select_scatter"),
    *("full", "full_like", "empty", "scalar_tensor", "getitem"),
}


@dataclass(frozen=True)
class Flops:
    """Floating-point operations per sample."""

    forward: float
    backward: float  # the gradients of all trained parameters, not that of the input

    @property
    def total(self) -> float:
        return self.forward + self.backward


def count(network: nn.Module, inputs: torch.Tensor) -> Flops:
    """Flops of a network with inputs (batch, ...) and one output tensor. Work done once per batch,
    such as the power of a constraint, is divided equally among its samples.

    Raises ValueError for a convolution, or another operation that would be counted wrongly here.
    """
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    names = list(trained)
    weights = tuple(trained.values())

    def forward(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        return functional_call(network, dict(zip(names, weights)), (x,))

    def both(x: torch.Tensor, ones: torch.Tensor, *weights: torch.Tensor) -> Sequence:
        return torch.autograd.grad(forward(x, *weights), weights, ones)

    ones = torch.ones_like(forward(inputs, *weights))
    ahead = _total(forward, inputs, *weights)
    total = _total(both, inputs, ones, *weights)
    samples = len(inputs)
    return Flops(ahead / samples, (total - ahead) / samples)


def _total(function: Callable, *tensors: torch.Tensor) -> int:
    """All operations of a function of tensors."""
    trace = make_fx(function, core_aten_decompositions(), tracing_mode="fake")
    graph = trace(*tensors).graph
    return sum(_of_operation(node) for node in graph.nodes if node.op == "call_function")


def _of_operation(node: Node) -> int:
    name = getattr(node.target, "__name__", str(node.target)).split(".")[0]
    if name in FREE:
        return 0
    if name in SUMS:
        return node.args[0].meta["val"].numel()
    made = node.meta["val"]
    if name in PRODUCTS:
        return 2 * made.numel() * node.args[0].meta["val"].shape[-1]
    if not isinstance(made, torch.Tensor) or "conv" in name or "pool" in name:
        raise ValueError(f"{name}: is not counted; runlog/flops.py supports dense layers")
    return math.prod(made.shape)
