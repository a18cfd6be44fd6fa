"""How networks of activations.py are trained: which parameter has which learning rate and decay
(`parameter_groups`), Adam for networks with leading seed axes, and ReDo's recycling of neurons.

Everything works on parameters in place, and nothing draws from the global generators.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn as nn

from activations import (
    CoefficientGroup,
    Conv2d,
    HiddenLayer,
    LayerNorm,
    Linear,
    RationalConfig,
    coefficient_groups,
)

NEW_GRADIENT = 0.1  # 1 - beta1 of Adam
NEW_SQUARE = 0.001  # 1 - beta2


# ---- groups ------------------------------------------------------------------------------------


@dataclass
class ParameterGroup:
    """Parameters that are trained alike: their names, in the network's order."""

    learning_rate: float | torch.Tensor
    weight_decay: float  # decoupled, per unit of learning rate (Loshchilov & Hutter 2019)
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)


def group_parameters(
    network: nn.Module, learning_rate: float | torch.Tensor, rational: RationalConfig
) -> list[ParameterGroup]:
    """The trained parameters of a network (those that require a gradient) in groups:

    - weights, biases and norms: learning_rate, no decay;
    - coefficients of activations: rational.learning_rate (None: learning_rate) and
      rational.coefficient_weight_decay;
    - each further group that an activation declares (activations.CoefficientGroup): the declared
      values, otherwise those of coefficients. For example, log c of a rational is not decayed.

    In this order; a group without parameters is omitted.
    """
    coefficients = CoefficientGroup()
    declared = coefficient_groups(network)
    groups = {
        None: ParameterGroup(learning_rate, 0.0),
        coefficients: _coefficient_group(coefficients, learning_rate, rational),
    }
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        kind = declared.get(name)
        if kind not in groups:
            groups[kind] = _coefficient_group(kind, learning_rate, rational)
        groups[kind].parameters[name] = parameter
    return [group for group in groups.values() if group.parameters]


def _coefficient_group(
    declared: CoefficientGroup, learning_rate: float | torch.Tensor, rational: RationalConfig
) -> ParameterGroup:
    """The group, still empty, for coefficients with this declaration."""
    for own_rate in (declared.learning_rate, rational.learning_rate):
        if own_rate is not None:
            learning_rate = own_rate
            break
    weight_decay = declared.weight_decay
    if weight_decay is None:
        weight_decay = rational.coefficient_weight_decay
    return ParameterGroup(learning_rate, weight_decay)


def parameter_groups(
    network: nn.Module, learning_rate: float, rational: RationalConfig
) -> list[dict]:
    """`group_parameters` for a torch optimiser with decoupled weight decay, such as AdamW. Each
    group keeps its first learning rate as "initial_lr", for schedules."""
    return [
        {
            "params": list(group.parameters.values()),
            "lr": group.learning_rate,
            "initial_lr": group.learning_rate,
            "weight_decay": group.weight_decay,
        }
        for group in group_parameters(network, learning_rate, rational)
    ]


# ---- Adam --------------------------------------------------------------------------------------


class Adam(nn.Module):
    """torch.optim.Adam's rule (Kingma & Ba 2015) for a network with leading seed axes, in place, so
    that it can be compiled as part of an update. Learning rates and decay are those of
    `group_parameters`. Its state is in state_dict().

    names, parameters_: what is trained, in the network's order. learning_rate: a number, or a
    tensor on the network's device with (the first of) its leading axes: one value for each entry.
    """

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float | torch.Tensor,
        rational: RationalConfig,
        eps: float = 1e-8,
    ):
        super().__init__()
        group_of = {}
        for group in group_parameters(network, learning_rate, rational):
            group_of |= dict.fromkeys(group.parameters, group)
        trained = {name: p for name, p in network.named_parameters() if name in group_of}
        self.names = list(trained)
        self.parameters_ = list(trained.values())
        self.eps = eps
        self.lr = [_broadcast(group_of[name].learning_rate, p) for name, p in trained.items()]
        self.decay = [group_of[name].weight_decay for name in trained]
        self.register_buffer("count", torch.zeros(()))
        for name, parameter in trained.items():
            for buffer in _moment_names(name):
                self.register_buffer(buffer, torch.zeros_like(parameter))

    def reset(self) -> None:
        """Resets moments and step count to their state before the first step."""
        for buffer in self.buffers():
            buffer.zero_()

    def moments(self, parameter: nn.Parameter) -> list[torch.Tensor]:
        """The running means of its gradient and of its squared gradient; [] if it is not
        trained."""
        for name, trained in zip(self.names, self.parameters_):
            if trained is parameter:
                return [self.get_buffer(buffer) for buffer in _moment_names(name)]
        return []

    def step(self, grads: Sequence[torch.Tensor]) -> None:
        """One step; grads in the order of parameters_. Call it under torch.no_grad()."""
        self.count += 1
        bias1 = 1 - 0.9**self.count
        bias2 = (1 - 0.999**self.count).sqrt()
        buffers = dict(self.named_buffers())
        columns = zip(self.names, self.parameters_, grads, self.lr, self.decay)
        for name, parameter, grad, lr, decay in columns:
            exp_avg, exp_avg_sq = (buffers[buffer] for buffer in _moment_names(name))
            exp_avg.lerp_(grad, NEW_GRADIENT)
            exp_avg_sq.lerp_(grad * grad, NEW_SQUARE)
            direction = exp_avg / bias1 / (exp_avg_sq.sqrt() / bias2 + self.eps)
            parameter.sub_(lr * (direction + decay * parameter))


def _broadcast(learning_rate: float | torch.Tensor, parameter: nn.Parameter):
    """learning_rate, in a shape that broadcasts over the leading axes of the parameter."""
    if not torch.is_tensor(learning_rate):
        return learning_rate
    ones = [1] * (parameter.dim() - learning_rate.dim())
    return learning_rate.view((*learning_rate.shape, *ones))


def _moment_names(name: str) -> tuple[str, str]:
    """Names of Adam's buffers for this parameter, as checkpoints store them."""
    name = name.replace(".", "_")
    return f"exp_avg_{name}", f"exp_avg_sq_{name}"


# ---- torch's optimisers on a GPU -----------------------------------------------------------------


def set_capturable(
    optimizer: torch.optim.Optimizer, capturable: bool, device: torch.device
) -> None:
    """Sets whether steps of a torch optimiser may be compiled or captured as a CUDA graph, in which
    case its step counts are on the device. Call it after load_state_dict too, which restores the
    setting and the counts of the run that saved them."""
    # torch would warn that the steps before the capture are not captured
    optimizer._warned_capturable_if_run_uncaptured = True
    for group in optimizer.param_groups:
        group["capturable"] = capturable
        counts_on_device = capturable or group.get("fused")
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if "step" in state:
                state["step"] = state["step"].to(device if counts_on_device else "cpu")


def set_learning_rate(group: dict, rate: float, device: torch.device | None) -> None:
    """Sets the learning rate of a group of a torch optimiser. device: keep it in one tensor there,
    which a compiled or captured step reads (a number would be fixed in its code); None: keep a
    number."""
    if device is None:
        group["lr"] = rate
    elif torch.is_tensor(group["lr"]) and group["lr"].device.type == device.type:
        group["lr"].fill_(rate)
    else:
        group["lr"] = torch.tensor(rate, device=device)


def _moments(optimizer: torch.optim.Optimizer | Adam, parameter: nn.Parameter) -> list:
    if isinstance(optimizer, Adam):
        return optimizer.moments(parameter)
    state = optimizer.state.get(parameter, {})
    return [state[name] for name in ("exp_avg", "exp_avg_sq") if name in state]


# ---- ReDo --------------------------------------------------------------------------------------


@torch.no_grad()
def recycle_neurons(
    layer: HiddenLayer,
    readers: list[nn.Module],
    dormant: torch.Tensor,
    optimizer: torch.optim.Optimizer | Adam,
    init: Callable,
    generators: torch.Generator | list[torch.Generator],
) -> torch.Tensor:
    """Recycles the dormant neurons of a layer (ReDo, Sokar et al. 2023), in place; returns how
    many, (*batch).

    In every branch the incoming weights are drawn again by `init`, the bias is set to 0, and norm
    scale and bias to 1 and 0. Outgoing weights are set to 0: the layers that read these neurons
    lose their contribution, and their new incoming weights have no effect yet. (A LayerNorm in
    between then divides by another standard deviation, which changes everything it normalises.) In
    a chain of layers, recycle the first one first, as recycle_layers does: if a reading neuron is
    recycled too, its incoming weights are drawn again afterwards, including those from recycled
    neurons, and its own outgoing weights are set to 0. The optimiser's moments of all these entries
    become 0; its step counts and the coefficients of activations stay.

    readers: the Linear and Conv2d modules that read the layer; a Linear may read it flattened
    (channel by channel). dormant: (*batch, layer.width) bool, per feature map for convolutions; a
    neuron with several outputs (crelu) is recycled only if all of them are dormant. generators:
    one, or a list with one for each batch entry, in order.
    """
    units = layer.branches[0].linear.bias.shape[-1]
    neurons = dormant.unflatten(-1, (-1, units)).all(-2)
    num_batch = neurons.dim() - 1
    outputs = neurons.repeat(*(1,) * num_batch, layer.width // units)
    if isinstance(generators, torch.Generator):
        generators = [generators]

    for branch in layer.branches:
        fresh = _draw_again(branch.linear, num_batch, init, generators)
        weight_axis = 1 if isinstance(branch.linear, Linear) else 0
        _overwrite(branch.linear.weight, neurons, weight_axis, fresh, optimizer)
        _overwrite(branch.linear.bias, neurons, 0, 0.0, optimizer)
        if isinstance(branch.norm, LayerNorm):
            _overwrite(branch.norm.weight, neurons, 0, 1.0, optimizer)
            _overwrite(branch.norm.bias, neurons, 0, 0.0, optimizer)
    for reader in readers:
        if isinstance(reader, Conv2d):
            _overwrite(reader.weight, outputs, 1, 0.0, optimizer)
        else:  # a flattened feature map has height * width features in a row
            positions = reader.weight.shape[-2] // layer.width
            features = outputs.repeat_interleave(positions, -1)
            _overwrite(reader.weight, features, 0, 0.0, optimizer)
    return neurons.sum(-1)


def _draw_again(
    linear: Linear | Conv2d, num_batch: int, init: Callable, generators: list[torch.Generator]
) -> torch.Tensor:
    """New weights in the shape of linear.weight, with one generator per batch entry."""
    weight = linear.weight
    is_dense = isinstance(linear, Linear)  # stored as (in, out), while init expects (out, in)
    entries = weight.flatten(0, num_batch - 1) if num_batch else [weight]
    fresh = []
    for entry, generator in zip(entries, generators, strict=True):
        drawn = torch.empty((entry.mT if is_dense else entry).shape)
        init(drawn, generator)
        fresh.append(drawn.mT if is_dense else drawn)
    return torch.stack(fresh).view(weight.shape).to(weight)


def _overwrite(
    parameter: nn.Parameter,
    mask: torch.Tensor,
    axis: int,
    values: torch.Tensor | float,
    optimizer: torch.optim.Optimizer | Adam,
) -> None:
    """Writes values where the mask (*batch, n) is set, along an axis counted after the batch axes,
    and sets the optimiser's moments there to 0."""
    num_batch = mask.dim() - 1
    before = (1,) * axis
    behind = (1,) * (parameter.dim() - num_batch - axis - 1)
    mask = mask.view(*mask.shape[:-1], *before, mask.shape[-1], *behind)
    parameter.copy_(torch.where(mask, values, parameter))
    for moment in _moments(optimizer, parameter):
        moment.masked_fill_(mask, 0.0)


def recycle_layers(
    layers: list[HiddenLayer],
    heads: list[nn.Module],
    dormant: list[torch.Tensor],
    optimizer: torch.optim.Optimizer | Adam,
    init: Callable,
    generators: torch.Generator | list[torch.Generator],
) -> torch.Tensor:
    """recycle_neurons for a chain of hidden layers, each read by the next and the last by `heads`;
    returns the fraction of neurons that were recycled, (*batch). dormant: a mask for each layer."""
    recycled = 0
    units = 0
    for i, (layer, mask) in enumerate(zip(layers, dormant)):
        readers = heads
        if i + 1 < len(layers):
            readers = [branch.linear for branch in layers[i + 1].branches]
        recycled = recycled + recycle_neurons(layer, readers, mask, optimizer, init, generators)
        units += layer.branches[0].linear.bias.shape[-1]
    return recycled.double() / units
