"""What a run logs about a network: one forward pass, recorded layer by layer, and the metrics,
norms, histograms and curves computed from it.

    with record_layers(network) as records:
        network(obs)
    layer_metrics(records["fc"])                  # {"dead_share": ..., "srank": ..., ...}
    network_report(network, (obs,), grads, 0)     # everything, named for the logs

No side effects: leaving the `with` removes the hooks, and nothing is drawn from the global RNG. The
metrics are those of metrics.py, with `*batch` as there. docs/metrics.md lists the keys.
"""

import functools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import metrics
from activations import HiddenLayer, Rational

Generator = torch.Generator | None
KDE_NEURONS = 16  # neurons per layer whose densities are stored as curves
KDE_POINTS = 64
MAX_SAMPLES = 2_048


# ---- recording ---------------------------------------------------------------------------------


@dataclass
class LayerRecord:
    """A hidden layer's last forward pass, detached: input and output of each branch's activation,
    and the output of the layer."""

    pre_activations: list[Tensor] = field(default_factory=list)
    branch_outputs: list[Tensor] = field(default_factory=list)
    output: Tensor | None = None


@contextmanager
def record_layers(network: nn.Module) -> Iterator[dict[str, LayerRecord]]:
    """Yields name -> LayerRecord for every submodule with `branches`, filled by each forward pass
    inside the `with`.

    The hooks are on the activation modules and are removed on exit, also after an exception; mode,
    parameters and RNG do not change. A module shared by layers or branches is recorded at each
    call. Call the eager module, not a compiled one. Raises ValueError if there is no such layer,
    RuntimeError if a layer bypasses the activation of a branch, or if an activation changes its
    input in place.
    """
    layers = {
        name: module for name, module in network.named_modules() if hasattr(module, "branches")
    }
    if not layers:
        raise ValueError(f"{type(network).__name__} has no submodule with `branches`")
    records = {}
    running = LayerRecord()  # of the current layer
    version = 0  # of the input of the current activation

    def start(module, args):
        nonlocal running
        running = LayerRecord()

    def before_activation(module, args):
        nonlocal version
        version = args[0]._version  # torch counts in-place changes of a tensor

    def activation(module, args, output):
        if args[0]._version != version:
            rule = "changes its input in place, which destroys its pre-activations"
            raise RuntimeError(f"{module} {rule}; let it return a new tensor")
        running.pre_activations.append(args[0].detach())
        running.branch_outputs.append(output.detach())

    def finish(module, args, output, *, name):
        if len(running.pre_activations) != len(module.branches):
            rule = "must call the activation of each of its branches once per forward"
            raise RuntimeError(f"layer {name!r} {rule}")
        running.output = output.detach()
        records[name] = running
        start(module, ())  # what runs between layers does not belong to this one

    with ExitStack() as hooks:
        activations = set()
        for name, layer in layers.items():
            end = functools.partial(finish, name=name)
            hooks.callback(layer.register_forward_pre_hook(start).remove)
            hooks.callback(layer.register_forward_hook(end).remove)
            activations |= {branch.activation for branch in layer.branches}
        for module in activations:
            hooks.callback(module.register_forward_pre_hook(before_activation).remove)
            hooks.callback(module.register_forward_hook(activation).remove)
        yield records


def _subset(x: Tensor, batch_dims: int, generator: torch.Generator, max_samples: int) -> Tensor:
    """channel_samples of x; above max_samples a random subset of them, the same for all batch
    entries."""
    x = metrics.channel_samples(x, batch_dims)
    num_samples = x.shape[-2]
    order = torch.randperm(num_samples, generator=generator, device=generator.device)
    if num_samples <= max_samples:
        return x
    return x.index_select(-2, order[:max_samples].to(x.device))


# ---- one layer ---------------------------------------------------------------------------------


def layer_metrics(
    record: LayerRecord,
    batch_dims: int = 0,
    *,
    generator: Generator = None,
    max_samples: int = MAX_SAMPLES,
) -> dict[str, Tensor]:
    """Metrics of one recorded layer, name -> (*batch), with the default omega, tau and delta.
    dead_share (KDE), dead_share_std, dormant_share, dormant_share_centred, srank, feature_norm,
    preact_q01 .. preact_q99 (branches pooled) and, with several branches, branch0_dead_share ...
    Tensors are (*batch, samples, neurons) or (*batch, samples, C, H, W), where neurons are channels
    (channel_samples). Above max_samples: a random subset, shared by the batch.
    >>> z = torch.linspace(-3, 3, 100).unsqueeze(-1)
    >>> layer_metrics(LayerRecord([z], [z.tanh()], z.tanh()))["dead_share"]
    tensor(0.)
    """
    if generator is None:
        generator = torch.Generator().manual_seed(0)  # the same draws for every device
    subset = functools.partial(
        _subset, batch_dims=batch_dims, generator=generator, max_samples=max_samples
    )
    output = subset(record.output)
    pooled = torch.cat([subset(x) for x in record.pre_activations], dim=-1)
    masks = {
        "dead_share": metrics.dead_neurons_kde(output, generator=generator)[0],
        "dead_share_std": metrics.dead_neurons_std(output)[0],
        "dormant_share": metrics.dormant_neurons(output)[0],
        "dormant_share_centred": metrics.dormant_neurons(output, subtract_mean=True)[0],
    }
    values = {name: _fraction(mask, output) for name, mask in masks.items()}
    if len(record.branch_outputs) > 1:
        for i, branch in enumerate(record.branch_outputs):
            samples = subset(branch)
            dead, _ = metrics.dead_neurons_kde(samples, generator=generator)
            values[f"branch{i}_dead_share"] = _fraction(dead, samples)
    values["srank"] = metrics.effective_rank(output)
    values["feature_norm"] = metrics.feature_norm(output)
    quantiles = metrics.preactivation_quantiles(pooled)
    for i, q in enumerate(metrics.QUANTILES):
        values[f"preact_q{round(100 * q):02d}"] = quantiles[..., i]
    return values


def _fraction(mask: Tensor, samples: Tensor) -> Tensor:
    """The fraction of neurons in a mask (*batch, neurons). NaN where their outputs, (*batch,
    samples, neurons), are not all finite: no neuron of a diverged network counts as alive."""
    fraction = mask.to(samples.dtype).mean(-1)
    is_finite = samples.isfinite().flatten(-2).all(-1)
    return torch.where(is_finite, fraction, torch.nan)


# ---- a whole network ---------------------------------------------------------------------------


@dataclass
class NetworkReport:
    """The result of network_report. Keys are `conv1/<name>`, ..., `fc1/<name>`, ... for the hidden
    layers in order, or a bare name."""

    # name -> (*batch)
    scalars: dict[str, Tensor] = field(default_factory=dict)
    # name -> counts (*batch, bins), edges (*batch, bins + 1)
    histograms: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    # name -> x (points) or (*batch, points), y (*batch, points), and further values of the curve,
    # each (*batch)
    curves: dict[str, tuple[Tensor, Tensor, dict[str, Tensor]]] = field(default_factory=dict)


@torch.no_grad()
def network_report(
    network: nn.Module,
    inputs: tuple,
    grads: dict[str, Tensor],
    batch_dims: int,
    *,
    generator: Generator = None,
    max_samples: int = MAX_SAMPLES,
) -> NetworkReport:
    """All metrics and curves of a network, from one forward pass `network(*inputs)`; no side
    effects.

    grads: name, as in network.named_parameters() -> gradient; parameters without one count as not
    trained and are left out, and a norm over no parameters has no key. batch_dims: number of
    leading axes of the parameters (1: seeds; 2: seeds, twin critics). Hidden layers (any submodule
    with `branches`) that output feature maps are conv1, ..., the others fc1, ... For each layer:

    - layer_metrics;
    - weight_norm and gradient_norm of weights and biases, including norm layers, and
      coefficient_gradient_norm of the activations' parameters;
    - for a rational numerator_norm = ||a||, denominator_norm = ||b|| and rational_health, for other
      activations <name>_norm of each parameter (with several branches: branch0_a_max, ...);
    - histogram preactivations, branches pooled;
    - curve activation, f on [-10, 10] (activation0, ... with several branches or outputs, as for
      crelu);
    - curves kde00 .. kde15, the density of the first neurons' outputs, with `dead`; with several
      branches also branch0_kde00, ...

    For the whole network: weight_norm, gradient_norm, coefficient_gradient_norm. A coefficient set
    shared by layers counts in each of them, and once for the network.
    """
    if generator is None:
        generator = torch.Generator().manual_seed(0)  # the same draws for every device
    with record_layers(network) as records:
        network(*inputs)
    layers = {name: network.get_submodule(name) for name in records}
    norms = _Norms(network, grads, layers.values(), batch_dims)
    subset = functools.partial(
        _subset, batch_dims=batch_dims, generator=generator, max_samples=max_samples
    )
    report = NetworkReport()
    numbers = {"conv": 0, "fc": 0}
    for name, layer in layers.items():
        record = records[name]
        kind = "conv" if record.output.ndim - batch_dims == 4 else "fc"
        numbers[kind] += 1
        scalars = layer_metrics(record, batch_dims, generator=generator, max_samples=max_samples)
        scalars |= norms.of(layer.parameters())
        scalars |= _activation_scalars(layer, record, batch_dims)
        pooled = torch.cat([subset(x) for x in record.pre_activations], dim=-1)
        curves = _activation_curves(layer, record, batch_dims)
        curves |= _density_curves(record, subset)
        prefix = f"{kind}{numbers[kind]}/"
        report.scalars |= {prefix + key: value for key, value in scalars.items()}
        report.histograms[prefix + "preactivations"] = metrics.histogram(pooled)
        report.curves |= {prefix + key: curve for key, curve in curves.items()}
    report.scalars |= norms.of(network.parameters())
    return report


class _Norms:
    """Norms of parameters and of their gradients, with the activations' parameters kept
    separate."""

    def __init__(
        self,
        network: nn.Module,
        grads: dict[str, Tensor],
        layers: Iterable[HiddenLayer],
        batch_dims: int,
    ):
        self.batch_dims = batch_dims
        self.gradients = {}  # by the parameter's id, since layers may share it
        for name, parameter in network.named_parameters(remove_duplicate=False):
            if name in grads:
                self.gradients[id(parameter)] = grads[name]
        self.coefficients = set()  # ids of the activations' parameters
        for layer in layers:
            for branch in layer.branches:
                self.coefficients |= {id(parameter) for parameter in branch.activation.parameters()}

    def of(self, parameters: Iterable[nn.Parameter]) -> dict[str, Tensor]:
        """weight_norm, gradient_norm and coefficient_gradient_norm, (*batch); a norm over no
        parameters has no key, and a parameter that occurs twice counts once."""
        parameters = {id(parameter): parameter for parameter in parameters}
        coefficients = parameters.keys() & self.coefficients
        weights = [p for key, p in parameters.items() if key not in coefficients]
        of_weights = []
        of_coefficients = []
        for key in parameters:
            if key in self.gradients:
                group = of_coefficients if key in coefficients else of_weights
                group.append(self.gradients[key])
        groups = {
            "weight_norm": weights,
            "gradient_norm": of_weights,
            "coefficient_gradient_norm": of_coefficients,
        }
        batch_dims = self.batch_dims
        return {name: metrics.weight_norm(x, batch_dims) for name, x in groups.items() if x}


def _branch_prefix(layer: HiddenLayer, i: int) -> str:
    return f"branch{i}_" if len(layer.branches) > 1 else ""


def _activation_scalars(
    layer: HiddenLayer, record: LayerRecord, batch_dims: int
) -> dict[str, Tensor]:
    """Norms of the activations' parameters, and the health of rationals on the batch."""
    values = {}
    for i, branch in enumerate(layer.branches):
        f = branch.activation
        if isinstance(f, Rational):
            norms = {"numerator": f.numerator, "denominator": f.denominator}
            x = record.pre_activations[i]
            health = metrics.rational_health(
                f.numerator,
                f.denominator,
                f.scale(),
                q_x=f.numerator_and_denominator(x)[1],
                f_x=record.branch_outputs[i],
                batch_dims=batch_dims,
            )
        else:
            norms = dict(f.named_parameters())
            health = {}
        start = _branch_prefix(layer, i)
        for name, parameter in norms.items():
            values[f"{start}{name}_norm"] = metrics.weight_norm([parameter], batch_dims)
        values |= {start + name: value for name, value in health.items()}
    return values


def _activation_curves(layer: HiddenLayer, record: LayerRecord, batch_dims: int) -> dict:
    """f of every branch and output on [-10, 10]."""
    first = record.pre_activations[0]
    grid = torch.linspace(-10, 10, 201, dtype=first.dtype, device=first.device)
    found = []
    for branch, x in zip(layer.branches, record.pre_activations):
        batch = x.shape[:batch_dims]
        trailing = (1,) * (x.ndim - batch_dims - 1)
        points = grid.view(*(1,) * batch_dims, -1, *trailing)
        outputs = branch.activation(points).flatten(batch_dims + 1)  # (*batch or ones, points, n)
        found += outputs.expand(*batch, -1, -1).unbind(-1)
    if len(found) == 1:
        return {"activation": (grid, found[0], {})}
    return {f"activation{i}": (grid, curve, {}) for i, curve in enumerate(found)}


def _density_curves(record: LayerRecord, subset) -> dict:
    """Densities of the first neurons of the output and, with several branches, of each branch."""
    outputs = {"": record.output}
    if len(record.branch_outputs) > 1:
        for i, output in enumerate(record.branch_outputs):
            outputs[f"branch{i}_"] = output
    curves = {}
    for start, output in outputs.items():
        output = subset(output)[..., :KDE_NEURONS]
        dead, peak = metrics.dead_neurons_kde(output)
        grid, density = metrics.kde_curves(output, KDE_POINTS)
        for i in range(output.shape[-1]):
            extra = {"dead": dead[..., i], "peak": peak[..., i]}
            curves[f"{start}kde{i:02d}"] = (grid[..., i, :], density[..., i, :], extra)
    return curves


def print_network(network: nn.Module) -> None:
    """Prints the modules of a network and the number of trainable parameters of each layer."""
    print(network)
    for name, layer in [*network.named_children(), ("total", network)]:
        trained = sum(p.numel() for p in layer.parameters() if p.requires_grad)
        print(f"{name:8}{trained:>12,}", flush=True)
