"""Activation functions, including the rational family and Hadamard combinations, and layers with
batch axes.

An expression such as `tanh*tanh` or `identity*silu` defines a hidden layer: its branches (each with
its own weights, bias, norm and coefficients) are multiplied (`*`, the Hadamard representation) or
added (`+`, which has lower precedence).

    dense(17, 256, "crational", seeds=1)          # one network: (batch, 17) -> (batch, 256)
    dense(17, 256, "tanh_hr", seeds=[1, 2, 3])    # three seeds: (3, batch, 17) -> (3, batch, 256)
    conv(4, 32, 8, "crelu", stride=4, seeds=1)    # (batch, 4, 84, 84) -> (batch, 64, 20, 20)

`layer.width` is the number of outputs (crelu and fourier double it). `seeds` determines the initial
weights, and its shape gives the leading batch axes: `np.shape(seeds) + (...)` for parameters.
Nothing here draws from the global generators, and branch k of a layer starts from the same weights
whatever the activation. Give each layer of a network a different seed: two layers with the same
shape and seed start out equal.

To add an activation, add one entry to the table ACTIVATIONS (docs/activations.md), which comes
after the modules it uses and before the layers. optimizers.py defines how the parameters of
activations are trained. Papers: CR = arXiv 2507.14736 (constrained rationals); HR = arXiv
2406.09079 (Hadamard representations).
"""

import contextlib
import difflib
import functools
import itertools
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch._functorch.config
import torch.nn as nn
import torch.nn.functional as F
from torch.autograd import forward_ad

OBSERVED = 4_096  # approximate number of pre-activations per batch for an adaptive constraint
PROBES = (-3.0, -1.0, -0.3, 0.0, 0.3, 1.0, 3.0)  # inputs that distinguish functions
MAX_POWER = 8  # float32 holds (1e4)^8 = 1e32; a higher power times a coefficient may overflow


@dataclass(frozen=True)
class CoefficientGroup:
    """How parameters of an activation are trained, where this differs from --rational.*.

    The module of an activation declares it by parameter name (applied by optimizers.py):

        self.coefficient_groups = {"log_scale": CoefficientGroup(weight_decay=0.0)}
    """

    learning_rate: float | None = None
    """None: --rational.learning-rate, by default that of the network"""
    weight_decay: float | None = None
    """decoupled, per unit of learning rate; None: --rational.coefficient-weight-decay"""


def _added(default):
    """An option newer than some runs: part of a run's identity unless it has its default."""
    return field(default=default, metadata={"identity": "unless default"})


@dataclass(frozen=True)
class RationalConfig:
    """Options of `rational` and `crational`; flags read --rational.*"""

    numerator_degree: int = 3
    """n, the degree of P (CR's example)"""
    denominator_degree: int = 2
    """m, the degree of Q (CR's example)"""
    form: Literal["A", "B"] = "A"
    """A: Q = 1 + sum |b_j x^j|; B: Q = 1 + |sum b_j x^j| (Molina et al. 2020)"""
    constraint_power: int = 4
    """d of crational's |x/c|^d; must exceed n so that f decays"""
    constraint_scale: float = 5.0
    """initial c of crational's |x/c|^d; not fitted, since a fit would drive it to infinity"""
    train_constraint_scale: bool = True
    """train c (as its logarithm, so that it stays positive)"""
    remove_constraint: bool = False
    """ablation: crational without |x/c|^d (a_0 stays removed)"""
    fit_target: str = "leaky_relu"
    """base activation to which the initial coefficients are fitted by least squares"""
    fit_range: tuple[float, float] = (-5.0, 5.0)
    """interval of that fit"""
    init_scale: float = 1.0
    """multiplies the fitted a and b (the low/high initialisation study of CR)"""
    learning_rate: float | None = None
    """learning rate of the coefficients; None = that of the network"""
    coefficient_weight_decay: float = 0.0
    """decoupled weight decay per unit learning rate, on the coefficients only (CR)"""
    share_across_layers: bool = False
    """one coefficient set for all layers of a network (recurrent rational, Delfosse et al. 2021)"""
    constraint_schedule: Literal["trained", "fixed", "anneal", "adaptive"] = _added("trained")
    """how c changes: trained by gradient descent (CR), fixed, annealed to constraint_scale_end, or
    adapted to the pre-activations (CR leaves a changing constraint as an open question)"""
    constraint_scale_end: float = _added(20.0)
    """anneal: final c; above constraint_scale the constraint loosens, below it tightens"""
    constraint_fraction: float = _added(1.0)
    """anneal: fraction of the updates over which log c changes linearly; then c is constant"""
    constraint_margin: float = _added(2.0)
    """adaptive: c = margin * running quantile of |pre-activation|"""
    constraint_quantile: float = _added(0.99)
    """adaptive: level of that quantile, computed on the pre-activations of each training batch"""
    constraint_momentum: float = _added(0.999)
    """adaptive: momentum of the running quantile, the fraction that an update keeps"""

    def __post_init__(self):
        n = self.numerator_degree
        m = self.denominator_degree
        d = self.constraint_power
        c = self.constraint_scale
        low, high = self.fit_range
        target = self.fit_target
        rate = self.learning_rate
        decay = self.coefficient_weight_decay
        lowest, highest = self.scale_bounds()

        _require(1 <= n < MAX_POWER, f"numerator-degree {n}: must lie in 1..{MAX_POWER - 1}")
        _require(1 <= m <= MAX_POWER, f"denominator-degree {m}: must lie in 1..{MAX_POWER}")
        _require(
            n < d <= MAX_POWER,
            f"constraint-power {d}: must exceed numerator-degree {n}, at most {MAX_POWER}",
        )
        _require(self.form in ("A", "B"), f"form {self.form!r}: must be A or B")
        _require(
            lowest <= c <= highest,
            f"constraint-scale {c}: must lie in {lowest:.2g}..{highest:.2g}",
        )
        _require(
            _base_name(target) in fit_targets(),
            f"fit-target {target!r}: {_nearest(target, fit_targets())}",
        )
        _require(
            -math.inf < low < high < math.inf,
            f"fit-range {low} {high}: must be two finite numbers, the smaller first",
        )
        _require(math.isfinite(self.init_scale), f"init-scale {self.init_scale}: must be finite")
        _require(
            rate is None or 0 <= rate < math.inf,
            f"learning-rate {rate}: must be 0 (frozen) or positive",
        )
        _require(
            0 <= decay < math.inf,
            f"coefficient-weight-decay {decay}: must be 0 (off) or positive",
        )
        self._check_schedule()

    def scale_bounds(self) -> tuple[float, float]:
        """Bounds on c within which |x/c|^d stays in float32 for |x| <= 1e4."""
        power = min(max(self.constraint_power, 1), MAX_POWER)
        return 10 ** (4 - 36 / power), 10 ** (18 / power)

    def _check_schedule(self) -> None:
        lowest, highest = self.scale_bounds()
        schedule = self.constraint_schedule
        end = self.constraint_scale_end
        fraction = self.constraint_fraction
        margin = self.constraint_margin
        quantile = self.constraint_quantile
        momentum = self.constraint_momentum
        schedules = ("trained", "fixed", *SCHEDULE_OPTIONS)
        _require(
            schedule in schedules,
            f"constraint-schedule {schedule!r}: {_nearest(str(schedule), schedules)}",
        )
        _require(
            schedule == "trained" or not self.remove_constraint,
            f"constraint-schedule {schedule}: --rational.remove-constraint leaves no c to schedule",
        )
        _require(
            schedule == "trained" or self.train_constraint_scale,
            f"no-train-constraint-scale: leave it out, --rational.constraint-schedule {schedule} "
            "does not train c",
        )
        _require(
            lowest <= end <= highest,
            f"constraint-scale-end {end}: must lie in {lowest:.2g}..{highest:.2g}",
        )
        _require(0 < fraction <= 1, f"constraint-fraction {fraction}: must lie in (0, 1]")
        _require(1e-6 <= margin <= 1e6, f"constraint-margin {margin}: must lie in [1e-06, 1e+06]")
        _require(0 < quantile <= 1, f"constraint-quantile {quantile}: must lie in (0, 1]")
        _require(0 <= momentum < 1, f"constraint-momentum {momentum}: must lie in [0, 1)")
        defaults = {field.name: field.default for field in fields(self)}
        for owner, names in SCHEDULE_OPTIONS.items():
            for name in names:
                value = getattr(self, name)
                flag = name.replace("_", "-")
                _require(
                    schedule == owner or value == defaults[name],
                    f"{flag} {value}: needs --rational.constraint-schedule {owner}",
                )


# schedule of c -> the options that only it uses
SCHEDULE_OPTIONS = {
    "anneal": ("constraint_scale_end", "constraint_fraction"),
    "adaptive": ("constraint_margin", "constraint_quantile", "constraint_momentum"),
}


def _require(passed: bool, problem: str) -> None:
    if not passed:
        raise ValueError(f"--rational.{problem}")


def _horner(x: torch.Tensor, coefficients: list[torch.Tensor]) -> torch.Tensor:
    """sum_k coefficients[k] x^k"""
    total = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        total = coefficient + x * total
    return total


def _is_forward_mode() -> bool:
    """Whether forward-mode differentiation is active, as in torch.func.hessian, jacfwd and jvp."""
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0


def _absolute(x: torch.Tensor) -> torch.Tensor:
    """|x|. Where its derivative is recorded, the derivative at 0 is the right-hand one, 1 (that of
    torch's abs is 0), so that second derivatives agree with the closed form of the first ones
    below."""
    is_recorded = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if is_recorded or _is_forward_mode():
        return torch.where(x >= 0, x, -x)
    return x.abs()


def _absolute_power(x: torch.Tensor, power: int) -> torch.Tensor:
    """|x|^power"""
    even = (x * x) ** (power // 2)
    return even * _absolute(x) if power % 2 else even


def _sign(x: torch.Tensor) -> torch.Tensor:
    """The derivative of |x|, with the right-hand derivative at 0: 1 where x >= 0, else -1."""
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


class _Parts(NamedTuple):
    """P and Q at x, and the coefficients, shaped to broadcast with x."""

    p: torch.Tensor
    q: torch.Tensor
    s: torch.Tensor | None  # form B: Q = 1 + |s|; form A: None
    a: list[torch.Tensor]
    b: list[torch.Tensor]  # form A: |b|
    weight: torch.Tensor | None  # c^-d; None without a constraint


def _rational_parts(x, numerator, denominator, weight, form: str, first: int, power: int) -> _Parts:
    """x: (*batch, ...). numerator, denominator: (*batch, coefficients). weight: c^-d, (*batch,), or
    None. first: the power of x that a[0] multiplies. power: d."""
    ones = (1,) * (x.dim() - numerator.dim() + 1)
    a = [coefficient.reshape(coefficient.shape + ones) for coefficient in numerator.unbind(-1)]
    b = [coefficient.reshape(coefficient.shape + ones) for coefficient in denominator.unbind(-1)]
    p = _horner(x, a)
    if first:
        p = x * p
    if form == "A":
        s = None
        b = [_absolute(coefficient) for coefficient in b]
        q = 1 + _absolute(x) * _horner(_absolute(x), b)
    else:
        s = x * _horner(x, b)
        q = 1 + _absolute(s)
    if weight is not None:
        weight = weight.reshape(weight.shape + ones)
        constraint = weight * (x * x) ** (power // 2)
        if power % 2:
            constraint = constraint * _absolute(x)
        q = q + constraint
    return _Parts(p, q, s, a, b, weight)


def _sum_to_batch(t: torch.Tensor, batch_dims: int) -> torch.Tensor:
    """Sums over all axes but the leading ones, (*batch,): over the last axis first, so that
    compiled code keeps the sum in registers."""
    if t.dim() > batch_dims:
        t = t.sum(-1)
    return t.flatten(batch_dims).sum(-1) if t.dim() > batch_dims else t


# Lets torch.compile cache code that contains this function: a warm start is seconds faster. This is
# safe, since the derivatives are traced into the graph whose hash is the key: edited code is
# compiled again.
torch._functorch.config.autograd_cache_allow_custom_autograd_functions = True


class _RationalFunction(torch.autograd.Function):
    """P/Q with derivatives in closed form: one pass over x, with only the inputs saved. At the kink
    of |.|, 0, it takes the right-hand derivative.

    The derivatives are ordinary operations on the saved tensors, so they can be differentiated too
    (double backward). In forward mode Rational computes P / Q with ordinary operations instead:
    torch.compile rejects a function that defines `jvp`, and torch records no tangents inside one,
    which would make nested forward mode silently wrong.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x, numerator, denominator, weight, form, first, power):
        parts = _rational_parts(x, numerator, denominator, weight, form, first, power)
        return parts.p / parts.q

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.form, ctx.first, ctx.power = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, grad):
        x, numerator, denominator, weight = ctx.saved_tensors
        form = ctx.form
        first = ctx.first
        power = ctx.power
        batch_dims = numerator.dim() - 1
        p, q, s, a, b, w = _rational_parts(x, numerator, denominator, weight, form, first, power)
        inverse = 1 / q
        to_p = grad * inverse  # dL/dP
        to_q = -to_p * (p * inverse)  # dL/dQ

        sign = _sign(x)
        u = _absolute(x) if form == "A" else x  # Q is a polynomial of u
        slope = _horner(u, [j * c for j, c in enumerate(b, start=1)])
        slope = slope * (sign if form == "A" else _sign(s))
        if w is not None:
            slope = slope + sign * (power * w) * _absolute_power(x, power - 1)  # dQ/dx
        p_slope = _horner(x, [k * c for k, c in enumerate(a, start=first) if k])  # dP/dx
        grad_x = to_p * p_slope + to_q * slope

        grad_a = []
        term = to_p * x if first else to_p
        for _ in a:
            grad_a.append(_sum_to_batch(term, batch_dims))
            term = term * x
        grad_b = []
        term = to_q if form == "A" else to_q * _sign(s)
        for _ in b:
            term = term * u
            grad_b.append(_sum_to_batch(term, batch_dims))
        grad_a = torch.stack(grad_a, -1)
        grad_b = torch.stack(grad_b, -1)
        if form == "A":
            grad_b = grad_b * _sign(denominator)
        grad_w = None
        if w is not None:
            grad_w = _sum_to_batch(to_q * _absolute_power(x, power), batch_dims)
        return grad_x, grad_a, grad_b, grad_w, None, None, None


@functools.lru_cache(maxsize=256)
def fit_rational(
    config: RationalConfig, constrained: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Least-squares coefficients (a, b) of the rational that approximates config.fit_target on
    config.fit_range.

    Levenberg-Marquardt on 2,001 evenly spaced points, in float64; c stays at
    config.constraint_scale. The fit starts from ones and from ones in units of the range, since
    either may get stuck. A ridge too weak to affect the fit visibly stops P and Q from growing
    together without bound. With degrees above 5/4 the ridge does affect the fit, which then
    continues with a tenth and a hundredth of it where that is clearly better. a holds a_0..a_n
    (a_1..a_n if constrained). Cached per configuration. Raises ValueError, which names the flag,
    where the target is not finite on the range, where the range is too small or too large for
    float64, or where P or Q would overflow float32 within |x| <= 1e4.
    """
    low, high = config.fit_range
    range_flag = f"--rational.fit-range {low} {high}"
    with np.errstate(all="ignore"):
        x = np.linspace(low, high, 2001)
        target = ACTIVATIONS[_base_name(config.fit_target)].function(torch.from_numpy(x)).numpy()
    if not np.isfinite(x).all():
        raise ValueError(f"{range_flag}: high - low must be a finite number")
    if not np.isfinite(target).all():
        target_flag = f"--rational.fit-target {config.fit_target!r}"
        raise ValueError(f"{target_flag}: not finite on {range_flag}")
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            best = _least_squares_fit(config, constrained, x, target)
    except (ArithmeticError, ValueError, np.linalg.LinAlgError):
        best = None  # how scipy reports residuals that are not finite
    if best is None or not np.isfinite(best).all():
        degree = max(config.numerator_degree, config.denominator_degree)
        problem = f"too small or too large for powers up to {degree}; the default is -5 5"
        raise ValueError(f"{range_flag}: {problem}")
    if not _lasts_far_out(config, constrained, best):
        range_flag = f"--rational.fit-range {config.fit_range}"
        raise ValueError(f"{range_flag}: the fit overflows float32 within |x| <= 1e4")
    if not _lasts_far_out(config, constrained, best, config.init_scale):
        problem = "P or Q would overflow float32 within |x| <= 1e4; the default is 1"
        raise ValueError(f"--rational.init-scale {config.init_scale}: {problem}")
    num_a = config.numerator_degree + 1 - int(constrained)
    return tuple(best[:num_a].tolist()), tuple(best[num_a:].tolist())


def _powers(config: RationalConfig, constrained: bool) -> tuple[np.ndarray, np.ndarray]:
    """The powers of x that a and b multiply."""
    of_a = np.arange(int(constrained), config.numerator_degree + 1)
    of_b = np.arange(1, config.denominator_degree + 1)
    return of_a, of_b


def _lasts_far_out(
    config: RationalConfig, constrained: bool, coefficients: np.ndarray, scale: float = 1.0
) -> bool:
    """Whether each term of P and Q, times scale, stays within float32 for |x| <= 1e4."""
    i, j = _powers(config, constrained)
    with np.errstate(over="ignore"):
        terms = np.abs(scale * coefficients * 1e4 ** np.append(i, j))
        return bool(terms.max() < 1e36)


def _least_squares_fit(
    config: RationalConfig, constrained: bool, x: np.ndarray, target: np.ndarray
) -> np.ndarray:
    """The coefficients a, b of fit_rational for target(x), before any checks."""
    from scipy.optimize import least_squares  # takes half a second, which relu does not need

    i, j = _powers(config, constrained)
    p_basis = x[:, None] ** i
    q_basis = (np.abs(x) if config.form == "A" else x)[:, None] ** j
    tail = 0.0
    if constrained and not config.remove_constraint:
        tail = np.abs(x / config.constraint_scale) ** config.constraint_power
    reach = np.abs(x).max()
    units = np.concatenate([reach**i, np.abs(target).max() * reach**j])
    ridge = 1e-6 * math.sqrt(x.size) * units

    def error(coefficients):
        a = coefficients[: i.size]
        b = coefficients[i.size :]
        q = q_basis @ np.abs(b) if config.form == "A" else np.abs(q_basis @ b)
        return p_basis @ a / (1 + q + tail) - target

    def rmse(coefficients):
        return np.sqrt(np.square(error(coefficients)).mean())

    def fit(start, ridge, max_evaluations):
        def residual(coefficients):
            return np.append(error(coefficients), ridge * coefficients)

        return least_squares(residual, start, method="lm", max_nfev=max_evaluations)

    first = fit(np.ones(ridge.size), ridge, 1_000)
    second = fit(np.concatenate([1 / reach**i, 1 / reach**j]), ridge, 1_000)
    best = second.x if second.cost < 0.99 * first.cost else first.x

    if config.numerator_degree <= 5 and config.denominator_degree <= 4:  # the ridge cannot be seen
        return best
    for _ in range(2):
        if rmse(best) < 1e-4 * np.abs(target).max():
            break  # no more to gain: the coefficients would only grow
        ridge = ridge / 10
        weaker = fit(best, ridge, 50).x
        is_better = rmse(weaker) < 0.98 * rmse(best)
        is_moderate = np.abs(weaker).max() < 1e3
        if not (is_better and is_moderate and _lasts_far_out(config, constrained, weaker)):
            break
        best = weaker
    return best


class Rational(nn.Module):
    """f(x) = P(x) / Q(x), trainable; one coefficient set per module and per leading batch index.

    rational (OR): P = sum_{i=0..n} a_i x^i, over Q = 1 + sum_{j=1..m} |b_j x^j| (form A) or
    Q = 1 + |sum_{j=1..m} b_j x^j| (form B).
    crational (CR): P without a_0, so f(0) = 0; Q gains |x/c|^d with d > n, so f -> 0 as |x| -> inf.
    Sources: Molina et al. 2020 (safe Pade units), CR (the constraint). x: (*batch, ..., features).
    Parameters: numerator (*batch, n + 1, or n if constrained), denominator (*batch, m) and
    log_scale (*batch,), which is log c, so that c stays positive. The constraint schedule `trained`
    trains log_scale; `anneal` and `adaptive` change it in step_constraints. They keep their state
    in two more parameters without a gradient (shared and copied like the others): updates
    (*batch,), the number of updates so far, and quantile (*batch,), the running quantile of |x|.

    >>> f = Rational(RationalConfig(), constrained=True)
    >>> f(torch.tensor([0.0, 1e4])).abs().max().item() < 0.01
    True
    """

    def __init__(
        self, config: RationalConfig, constrained: bool, batch_shape: tuple[int, ...] = ()
    ):
        super().__init__()
        self.config = config
        self.constrained = constrained
        self.batch_shape = batch_shape
        self.has_constraint = constrained and not config.remove_constraint
        self.coefficient_groups = {}
        a, b = fit_rational(config, constrained)
        a = config.init_scale * torch.tensor(a)
        b = config.init_scale * torch.tensor(b)
        self.numerator = nn.Parameter(a.expand(*batch_shape, -1).clone())
        self.denominator = nn.Parameter(b.expand(*batch_shape, -1).clone())
        if self.has_constraint:
            log_scale = torch.full(batch_shape, math.log(config.constraint_scale))
            is_trained = config.constraint_schedule == "trained" and config.train_constraint_scale
            self.log_scale = nn.Parameter(log_scale, requires_grad=is_trained)
            # decay would pull log c to 0 and so c to 1, which is no simpler than any other c
            self.coefficient_groups["log_scale"] = CoefficientGroup(weight_decay=0.0)
        self.schedule = config.constraint_schedule if self.has_constraint else "trained"
        self.is_observing = [False]  # a list, since a compiled update may write to it
        # Parameters, although nothing trains them: a target network copies the parameters of its
        # source, but not the buffers.
        if self.schedule == "anneal":
            updates = torch.zeros(batch_shape, dtype=torch.float64)  # exact for any count
            self.updates = nn.Parameter(updates, requires_grad=False)
        if self.schedule == "adaptive":
            # so that c starts at constraint_scale
            start = config.constraint_scale / config.constraint_margin
            self.quantile = nn.Parameter(torch.full(batch_shape, start), requires_grad=False)

    @torch.no_grad()
    def observe(self, x: torch.Tensor) -> None:
        """Moves the running quantile towards that of |x| for a batch x of pre-activations."""
        config = self.config
        batch_dims = self.log_scale.dim()
        rows = x.shape[batch_dims]
        kept = max(1, OBSERVED // math.prod(x.shape[batch_dims + 1 :]))
        every = (slice(None),) * batch_dims + (slice(None, None, math.ceil(rows / kept)),)
        sizes = x[every].abs().flatten(batch_dims)
        newest = upper_quantile(sizes, config.constraint_quantile)
        self.quantile.lerp_(newest.to(self.quantile.dtype), 1 - config.constraint_momentum)

    @torch.no_grad()
    def step_constraint(self, num_updates: int | None) -> None:
        """Moves c according to the schedule; call it once after each update."""
        config = self.config
        if self.schedule == "anneal":
            self.updates.add_(1)
            span = config.constraint_fraction * num_updates
            progress = (self.updates / span).clamp(max=1.0)
            start = math.log(config.constraint_scale)
            end = math.log(config.constraint_scale_end)
            self.log_scale.copy_(start + (end - start) * progress)
        if self.schedule == "adaptive":
            lowest, highest = config.scale_bounds()
            scale = config.constraint_margin * self.quantile
            self.log_scale.copy_(scale.clamp(lowest, highest).log())

    def scale(self) -> torch.Tensor | None:
        """c, shape (*batch,); None without a constraint."""
        return self.log_scale.exp() if self.has_constraint else None

    def _constraint_weight(self) -> torch.Tensor | None:
        """c^-d, shape (*batch,), the form in which P/Q uses c; None without a constraint."""
        if not self.has_constraint:
            return None
        return torch.exp(-self.config.constraint_power * self.log_scale)

    def _arguments(self) -> tuple:
        """The arguments of _rational_parts after x."""
        return (
            self.numerator,
            self.denominator,
            self._constraint_weight(),
            self.config.form,
            int(self.constrained),
            self.config.constraint_power,
        )

    def numerator_and_denominator(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(P(x), Q(x)), each with the shape of x."""
        parts = _rational_parts(x, *self._arguments())
        return parts.p, parts.q

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.is_observing[0] and torch.is_grad_enabled():
            self.observe(x)
        if _is_forward_mode():
            p, q = self.numerator_and_denominator(x)
            return p / q
        return _RationalFunction.apply(x, *self._arguments())

    def extra_repr(self) -> str:
        shape = self.batch_shape
        return f"constrained={self.constrained}, batch_shape={shape}, form={self.config.form}"


def upper_quantile(x: torch.Tensor, q: float) -> torch.Tensor:
    """torch.quantile(x, q, dim=-1) from the largest values alone: (*batch, n) -> (*batch,)."""
    place = q * (x.shape[-1] - 1)
    below = math.floor(place)
    largest = x.topk(x.shape[-1] - below, dim=-1).values
    if largest.shape[-1] == 1:
        return largest[..., 0]
    return torch.lerp(largest[..., -1], largest[..., -2], place - below)


def _scheduled(network: nn.Module) -> list[Rational]:
    """The rationals whose c follows a schedule; one of those that share coefficients."""
    found = []
    for name, _ in network.named_parameters():
        owner, _, leaf = name.rpartition(".")
        module = network.get_submodule(owner)
        is_constraint = leaf == "log_scale" and isinstance(module, Rational)
        if is_constraint and module.schedule in SCHEDULE_OPTIONS:
            found.append(module)
    return found


@contextlib.contextmanager
def observing(network: nn.Module):
    """Context for the forward pass that an update of this network differentiates: inside it,
    adaptive constraints observe the pre-activations. They ignore every other pass (targets, acting,
    evaluation, metrics), and any pass inside it that records no gradient."""
    modules = [module for module in network.modules() if isinstance(module, Rational)]
    adaptive = [module for module in modules if module.schedule == "adaptive"]
    for module in adaptive:
        module.is_observing[0] = True
    yield
    for module in adaptive:
        module.is_observing[0] = False


def step_constraints(network: nn.Module, num_updates: int | None) -> None:
    """To be called after each update of a network: moves c of its crationals by
    --rational.constraint-schedule, in place and without synchronising with the device. Does nothing
    for `trained` and `fixed`.

    num_updates: the number of updates of the whole training, over which `anneal` spreads its
    change.
    """
    for module in _scheduled(network):
        module.step_constraint(num_updates)


class Snake(nn.Module):
    """x + sin^2(a x) / a, with a trained (Ziyin et al. 2020), one per module and leading batch
    index. a starts at 1 and may cross 0, where the function is x."""

    def __init__(self, batch_shape: tuple[int, ...] = ()):
        super().__init__()
        self.a = nn.Parameter(torch.ones(batch_shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a.reshape(self.a.shape + (1,) * (x.dim() - self.a.dim()))
        phase = a * x
        return x + x * torch.sin(phase) * _sin_over(phase)


def _sin_over(x: torch.Tensor) -> torch.Tensor:
    """sin(x) / x, 1 at 0, with correct derivatives there: the second one of torch.sinc is nan."""
    is_near = x.abs() < 0.01
    near = torch.where(is_near, x, 0.0)
    far = torch.where(is_near, 1.0, x)
    series = 1 - near.square() / 6 + near.square().square() / 120  # exact to the last digit here
    return torch.where(is_near, series, torch.sin(far) / far)


def _smooth_leaky(x: torch.Tensor) -> torch.Tensor:
    """alpha x + (1 - alpha) x sigmoid(c x / p) with alpha = 0.1, c = 5, p = 3."""
    return 0.1 * x + 0.9 * x * torch.sigmoid(5 / 3 * x)


@dataclass(frozen=True)
class Activation:
    """One base activation: an element-wise `function`, or, where it has parameters,
    `build(batch_shape, rational_config)` -> nn.Module with parameters of shape (*batch_shape, ...).
    If `width` > 1 the function returns that many tensors, which are concatenated as features."""

    formula: str
    source: str
    function: Callable[[torch.Tensor], torch.Tensor] | None = None
    build: Callable[[tuple[int, ...], RationalConfig], nn.Module] | None = None
    width: int = 1


ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation("x", "-", lambda x: x),
    "relu": Activation("max(x, 0)", "Nair & Hinton 2010", F.relu),
    "leaky_relu": Activation("max(x, 0.01 x)", "Maas et al. 2013", F.leaky_relu),
    "smooth_leaky": Activation(
        "0.1 x + 0.9 x sigmoid(5 x / 3)", "Lillo & Cheney 2025", _smooth_leaky
    ),
    "elu": Activation("x if x > 0 else e^x - 1", "Clevert et al. 2016", F.elu),
    "selu": Activation(
        "1.0507 (x if x > 0 else 1.6733 (e^x - 1))", "Klambauer et al. 2017", F.selu
    ),
    "gelu": Activation("x Phi(x), Phi the normal cdf", "Hendrycks & Gimpel 2016", F.gelu),
    "silu": Activation("x sigmoid(x)", "Elfwing et al. 2018", F.silu),
    "mish": Activation("x tanh(log(1 + e^x))", "Misra 2019", F.mish),
    "softplus": Activation("log(1 + e^x)", "Dugas et al. 2001", F.softplus),
    "tanh": Activation("tanh(x)", "-", torch.tanh),
    "sigmoid": Activation("1 / (1 + e^-x)", "-", torch.sigmoid),
    "crelu": Activation(
        "[max(x, 0), max(-x, 0)]",
        "Shang et al. 2016",
        lambda x: (F.relu(x), F.relu(-x)),
        width=2,
    ),
    "fourier": Activation(
        "[sin(x), cos(x)]",
        "Lewandowski et al. 2024",
        lambda x: (torch.sin(x), torch.cos(x)),
        width=2,
    ),
    "snake": Activation(
        "x + sin^2(a x) / a",
        "Ziyin et al. 2020",
        build=lambda batch_shape, config: Snake(batch_shape),
    ),
    "rational": Activation(
        "P(x) / Q(x), P of degree 3, Q = 1 + |b1 x| + |b2 x^2|",
        "Molina et al. 2020; Delfosse et al. 2021",
        build=lambda batch_shape, config: Rational(config, False, batch_shape),
    ),
    "crational": Activation(
        "x (a1 + a2 x + a3 x^2) / (1 + |b1 x| + |b2 x^2| + |x/c|^4)",
        "CR (Surdej et al. 2025)",
        build=lambda batch_shape, config: Rational(config, True, batch_shape),
    ),
}
# and NAME_hr = NAME*NAME for every base name
ALIASES = {"tanh_2hr": "tanh*tanh*tanh", "tanh_add": "tanh+tanh"}
SYNONYMS = {"swish": "silu"}  # other names of base names


def _base_name(name: str) -> str:
    return name if name in ACTIVATIONS else SYNONYMS.get(name, name)


def fit_targets() -> list[str]:
    """Names that --rational.fit-target accepts: the element-wise activations, added ones
    included."""
    entries = ACTIVATIONS.items()
    return [name for name, entry in entries if entry.function is not None and entry.width == 1]


def _nearest(name: str, names, more=()) -> str:
    """The end of an error message: the closest of `names` and `more`, then the list of `names`."""
    candidates = list(dict.fromkeys([*names, *more]))
    close = difflib.get_close_matches(name.lower(), candidates, n=3, cutoff=0.5)
    close = close or difflib.get_close_matches(name.lower(), candidates, n=1, cutoff=0.0)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{hint}choose from {' '.join(names)}"


def parse(expression: str, flag: str = "--activation") -> list[list[str]]:
    """A sum of products of base names: "tanh_hr" -> [["tanh", "tanh"]], "tanh+relu_hr" ->
    [["tanh"], ["relu", "relu"]].

    Raises ValueError, which names the flag, for an unknown name (with the closest names and the
    whole list), and for an entry of ACTIVATIONS whose name cannot be written in an expression.
    """
    started = f"{flag} {expression!r}"
    for name in ACTIVATIONS:
        if not re.fullmatch(r"[A-Za-z0-9.-]+(_[A-Za-z0-9.-]+)*", name):
            rule = "a name has letters, digits, '.' and '-', and '_' between them"
            raise ValueError(f"ACTIVATIONS[{name!r}]: {rule}")
    bases = {name: _base_name(name) for name in (*SYNONYMS, *ACTIVATIONS)}
    squares = {f"{name}_hr": f"{base}*{base}" for name, base in bases.items()}
    expansions = squares | ALIASES | bases
    terms = []
    for term in expression.split("+"):
        names = [name.strip() for name in term.split("*")]
        for name in names:
            if not name:
                known = " ".join(ACTIVATIONS)
                raise ValueError(f"{started}: a name is missing; choose from {known}")
            if name not in expansions:
                hint = _nearest(name, [*ACTIVATIONS, *SYNONYMS, *ALIASES, "NAME_hr"], expansions)
                raise ValueError(f"{started}: unknown name {name!r}; {hint}")
            if len(names) > 1 and "+" in expansions[name]:
                problem = f"{name} is a sum ({expansions[name]}) and cannot be a factor"
                raise ValueError(f"{started}: {problem}")
        expanded = "*".join(expansions[name] for name in names)
        terms += [product.split("*") for product in expanded.split("+")]
    if len({ACTIVATIONS[name].width for name in _factors(terms)}) > 1:
        raise ValueError(f"{started}: the widths differ (crelu and fourier double it)")
    return terms


def _factors(terms: list[list[str]]) -> list[str]:
    """The base names of all branches, in order."""
    return list(itertools.chain.from_iterable(terms))


def check(expression: str, rational: RationalConfig, flag: str = "--activation") -> None:
    """Raises ValueError, which names the flag, unless the expression parses, its rationals can be
    fitted, and each of its functions works in a layer (`_try_out`)."""
    for name in dict.fromkeys(_factors(parse(expression, flag))):
        _try_out(name, rational, flag)


def _try_out(name: str, rational: RationalConfig, flag: str) -> None:
    """Calls a base activation once, for two seeds. Raises ValueError, which names the flag, if the
    call fails, changes its input or returns another shape or type, or if a parameter lacks the seed
    axis."""
    started = f"{flag} {name}"
    entry = ACTIVATIONS[name]
    if (entry.function is None) == (entry.build is None):
        raise ValueError(f"{started}: its Activation needs either a function or a build")
    seeds = 2
    try:
        module = make_activation(name, rational, (seeds,))
    except ValueError:  # about an option of --rational, which it names
        raise
    except Exception as error:  # from a user's build: may be any
        problem = f"{type(error).__name__}: {error}"
        raise ValueError(f"{started}: its build(({seeds},), rational) fails: {problem}") from error
    for parameter_name, parameter in module.named_parameters():
        if parameter.shape[:1] != (seeds,):
            found = f"its parameter {parameter_name} has the shape {tuple(parameter.shape)}"
            rule = "start the shape with build's first argument, the seed axes"
            raise ValueError(f"{started}: {found} for {seeds} seeds; {rule}")
    given = torch.linspace(-3, 3, 30).reshape(seeds, 3, 5)
    x = given.clone()
    try:
        output = _call_once(module, x)
    except Exception as error:  # from a user's function: may be any
        problem = f"{type(error).__name__}: {error}"
        raise ValueError(f"{started}: fails on a tensor {tuple(x.shape)}: {problem}") from error
    if not torch.equal(x, given):
        raise ValueError(f"{started}: changes its input in place; return a new tensor")
    if not isinstance(output, torch.Tensor):
        found = type(output).__name__
        rule = "with width=2 in its Activation it may return a tuple of two"
        raise ValueError(f"{started}: returns a {found}, not a tensor; {rule}")
    expected = (*x.shape[:-1], x.shape[-1] * entry.width)
    if output.shape != expected or output.dtype != x.dtype:
        found = f"maps {x.dtype} {tuple(x.shape)} to {output.dtype} {tuple(output.shape)}"
        rule = f"with width={entry.width} the output must be {x.dtype} {expected}"
        raise ValueError(f"{started}: {found}; {rule}")


def _call_once(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """module(x) in evaluation mode; random draws always use the same seed."""
    with torch.no_grad(), torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return module.eval()(x)


def values_at_probes(name: str, rational: RationalConfig | None = None) -> list[float]:
    """The outputs of a new base activation at PROBES, one probe after another. If one name gives
    two different lists, it denotes two different functions. Raises ValueError for an unknown
    name."""
    probes = torch.tensor(PROBES).unsqueeze(-1)
    return _call_once(make_activation(name, rational), probes).flatten().tolist()


def check_schedule(expressions: Sequence[str], rational: RationalConfig) -> None:
    """Raises ValueError, which names the flag, if --rational.constraint-schedule is given and none
    of these activations has a constraint."""
    schedule = rational.constraint_schedule
    names = _factors([_factors(parse(expression)) for expression in expressions])
    modules = [make_activation(name, rational) for name in names]
    is_constrained = [getattr(module, "has_constraint", False) for module in modules]
    if schedule != "trained" and not any(is_constrained):
        problem = f"{' '.join(expressions)} has no |x/c|^d; use crational"
        raise ValueError(f"--rational.constraint-schedule {schedule}: {problem}")


def check_encoder(names: tuple[str, ...], rational: RationalConfig) -> None:
    """`check` for the activations of three convolutions: one name for all, or three. Raises
    ValueError."""
    flag = "--encoder-activation"
    if len(names) not in (1, 3):
        raise ValueError(f"{flag} {' '.join(names)}: give one name, or three")
    for name in names:
        check(name, rational, flag)


class Elementwise(nn.Module):
    """A parameter-free activation as a module, so that hooks see its input and output."""

    def __init__(self, name: str, feature_axis: int):
        super().__init__()
        self.name = name
        self.feature_axis = feature_axis

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        entry = ACTIVATIONS[self.name]
        if entry.width == 1:
            return entry.function(x)
        return torch.cat(entry.function(x), self.feature_axis)

    def extra_repr(self) -> str:
        return self.name


def make_activation(
    name: str,
    rational: RationalConfig | None = None,
    batch_shape: Sequence[int] = (),
    feature_axis: int = -1,
) -> nn.Module:
    """One new module for one base name (no `*` or `+`). Raises ValueError for an unknown name."""
    name = _base_name(name)
    if name not in ACTIVATIONS:
        raise ValueError(f"--activation {name!r}: {_nearest(name, ACTIVATIONS)}")
    build = ACTIVATIONS[name].build
    if build is None:
        return Elementwise(name, feature_axis)
    return build(tuple(batch_shape), rational or RationalConfig())


def orthogonal(gain: float = math.sqrt(2)) -> Callable:
    """Initialiser that fills a weight matrix or kernel from a generator; the gain is the same for
    every activation."""
    return lambda weight, generator: nn.init.orthogonal_(weight, gain, generator=generator)


def fan_in_uniform(weight: torch.Tensor, generator: torch.Generator) -> None:
    """Uniform in +-1 / sqrt(fan_in), torch's default for weights."""
    bound = 1 / math.sqrt(weight[0].numel())
    nn.init.uniform_(weight, -bound, bound, generator=generator)


def he_normal(weight: torch.Tensor, generator: torch.Generator, variance: float = 2.0) -> None:
    """Normal with variance 2 / fan_in after truncation at 2 standard deviations of the untruncated
    normal (jax's he_normal)."""
    truncated_std = 0.87962566103423978  # of a standard normal truncated to [-2, 2]
    std = math.sqrt(variance / weight[0].numel()) / truncated_std
    nn.init.trunc_normal_(weight, 0.0, std, -2 * std, 2 * std, generator=generator)


def lecun_normal(weight: torch.Tensor, generator: torch.Generator) -> None:
    """Normal with variance 1 / fan_in, truncated in the same way (jax's lecun_normal)."""
    he_normal(weight, generator, variance=1.0)


BiasInit = Literal["zero", "uniform"]


def _initialise(
    shape: tuple[int, ...], seeds, branch: int, init: Callable, *purpose: int
) -> torch.Tensor:
    """Parameters (*np.shape(seeds), *shape), each entry drawn from a generator for its seed, branch
    and purpose."""
    seeds = np.asarray(seeds)
    drawn = []
    for seed in seeds.ravel():
        sequence = np.random.SeedSequence([int(seed), branch, *purpose])
        entropy = sequence.generate_state(1, np.uint64)[0]
        parameter = torch.empty(shape)
        init(parameter, torch.Generator().manual_seed(int(entropy)))
        drawn.append(parameter)
    return torch.stack(drawn).reshape(*seeds.shape, *shape)


def _initial_biases(
    shape: tuple[int, ...], seeds, branch: int, bias_init: BiasInit
) -> nn.Parameter:
    """Biases of a layer whose weights have `shape`, (out, in, ...): zero, or uniform in +-1 /
    sqrt(fan_in), which is torch's default. They have their own generator, so the weights do not
    depend on the choice."""
    if bias_init not in ("zero", "uniform"):
        raise ValueError(f"bias_init {bias_init!r}: choose from zero uniform")
    out_features = shape[0]
    if bias_init == "zero":
        return nn.Parameter(torch.zeros(*np.shape(seeds), out_features))
    bound = 1 / math.sqrt(math.prod(shape[1:]))

    def uniform(bias: torch.Tensor, generator: torch.Generator) -> None:
        nn.init.uniform_(bias, -bound, bound, generator=generator)

    purpose_bias = 1
    return nn.Parameter(_initialise((out_features,), seeds, branch, uniform, purpose_bias))


class Linear(nn.Module):
    """x W + b with leading batch axes: x (*batch, n, in_features), weight (*batch, in, out),
    bias (*batch, out)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        seeds=0,
        branch: int = 0,
        init: Callable | None = None,
        bias_init: BiasInit = "zero",
    ):
        super().__init__()
        shape = (out_features, in_features)
        weight = _initialise(shape, seeds, branch, init or orthogonal())
        self.weight = nn.Parameter(weight.transpose(-1, -2).contiguous())
        self.bias = _initial_biases(shape, seeds, branch, bias_init)

    def extra_repr(self) -> str:
        return f"weight {tuple(self.weight.shape)}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # matmul and a separate sum: the sum fuses with the activation, which baddbmm would prevent
        return torch.matmul(x, self.weight) + self.bias.unsqueeze(-2)


class Conv2d(nn.Module):
    """Convolution with leading batch axes: x (*batch, n, channels, height, width),
    weight (*batch, out, in, k, k), bias (*batch, out)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        *,
        seeds=0,
        branch: int = 0,
        init: Callable | None = None,
        bias_init: BiasInit = "zero",
    ):
        super().__init__()
        self.stride = stride
        self.padding = padding
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        self.weight = nn.Parameter(_initialise(shape, seeds, branch, init or orthogonal()))
        self.bias = _initial_biases(shape, seeds, branch, bias_init)

    def extra_repr(self) -> str:
        return f"weight {tuple(self.weight.shape)}, stride {self.stride}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        convolve = functools.partial(F.conv2d, stride=self.stride, padding=self.padding)
        for _ in range(self.bias.dim() - 1):
            convolve = torch.vmap(convolve)
        return convolve(x, self.weight, self.bias)


class LayerNorm(nn.Module):
    """Layer normalisation over the last `len(shape)` axes, or over the channels of each pixel.

    Scale and bias have shape (*batch, *shape), eps 1e-5 (torch's default).
    """

    def __init__(self, shape: tuple[int, ...], batch_shape=(), per_pixel: bool = False):
        super().__init__()
        self.axes = (-3,) if per_pixel else tuple(range(-len(shape), 0))
        self.per_pixel = per_pixel
        self.num_batch = len(batch_shape)
        self.weight = nn.Parameter(torch.ones(*batch_shape, *shape))
        self.bias = nn.Parameter(torch.zeros(*batch_shape, *shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        variance, mean = torch.var_mean(x, self.axes, correction=0, keepdim=True)
        normalised = (x - mean) * torch.rsqrt(variance + 1e-5)
        tail = (..., None, None) if self.per_pixel else (...,)
        weight = self.weight[tail].unsqueeze(self.num_batch)
        bias = self.bias[tail].unsqueeze(self.num_batch)
        return normalised * weight + bias


class Branch(nn.Module):
    """linear -> norm -> activation, the order of HR (norm, activation, then the product)."""

    def __init__(self, linear: nn.Module, norm: nn.Module, activation: nn.Module):
        super().__init__()
        self.linear = linear
        self.norm = norm
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.norm(self.linear(x)))


class HiddenLayer(nn.Module):
    """Sum of products of branches that see the same input (for one product of two: HR, eq. 3 and
    4). terms: the names in each product. width: number of outputs."""

    def __init__(self, branches: list[Branch], terms: list[list[str]], width: int):
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.term_sizes = [len(names) for names in terms]
        self.width = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = [branch(x) for branch in self.branches]
        products = []
        start = 0
        for size in self.term_sizes:
            products.append(functools.reduce(torch.mul, outputs[start : start + size]))
            start += size
        return functools.reduce(torch.add, products)


def _share_coefficients(module: nn.Module, source: nn.Module) -> None:
    """Gives `module` the parameters and buffers of `source`; both modules remain, so that each
    layer has its own hooks."""
    for mine, theirs in zip(module.modules(), source.modules(), strict=True):
        tensors = [*theirs.named_parameters(recurse=False), *theirs.named_buffers(recurse=False)]
        for name, tensor in tensors:
            setattr(mine, name, tensor)


def _hidden_layer(
    expression: str,
    make_linear: Callable,
    make_norm: Callable,
    *,
    out_width: int,
    seeds,
    rational: RationalConfig | None,
    shared: dict | None,
    feature_axis: int,
) -> HiddenLayer:
    """A layer of branches; see `dense`. make_linear(branch=k) and make_norm() return new modules
    for a branch. out_width: outputs of each linear module. feature_axis: the axis that crelu
    doubles."""
    terms = parse(expression)
    names = _factors(terms)
    branches = []
    for k, name in enumerate(names):
        activation = make_activation(name, rational, np.shape(seeds), feature_axis)
        if shared is not None:
            place = (name, names[:k].count(name))  # the i-th `rational` of each layer is shared
            _share_coefficients(activation, shared.setdefault(place, activation))
        branches.append(Branch(make_linear(branch=k), make_norm(), activation))
    return HiddenLayer(branches, terms, out_width * ACTIVATIONS[names[0]].width)


def dense(
    in_features: int,
    out_features: int,
    activation: str,
    *,
    seeds=0,
    layer_norm: bool = False,
    rational: RationalConfig | None = None,
    shared: dict | None = None,
    init: Callable | None = None,
    bias_init: BiasInit = "zero",
) -> HiddenLayer:
    """A hidden layer (*batch, n, in_features) -> (*batch, n, layer.width) for any expression.

    seeds: int or nested sequence of ints; its shape is the batch shape. layer_norm: normalise each
    branch before its activation. shared: a dict, initially {}, that is passed to every layer of one
    network to share one coefficient set (--rational.share-across-layers). init: see `orthogonal`.
    bias_init: "zero", or "uniform" in +-1 / sqrt(fan_in). Raises ValueError for an unknown name.

    >>> dense(3, 8, "crelu", seeds=[1, 2]).width
    16
    """
    start = {"seeds": seeds, "init": init, "bias_init": bias_init}
    make_linear = functools.partial(Linear, in_features, out_features, **start)
    make_norm = nn.Identity
    if layer_norm:
        make_norm = functools.partial(LayerNorm, (out_features,), np.shape(seeds))
    return _hidden_layer(
        activation,
        make_linear,
        make_norm,
        out_width=out_features,
        seeds=seeds,
        rational=rational,
        shared=shared,
        feature_axis=-1,
    )


def conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    activation: str,
    *,
    stride: int = 1,
    padding: int = 0,
    seeds=0,
    layer_norm: Literal["none", "channel", "chw"] = "none",
    out_size: tuple[int, int] | None = None,
    rational: RationalConfig | None = None,
    shared: dict | None = None,
    init: Callable | None = None,
    bias_init: BiasInit = "zero",
) -> HiddenLayer:
    """A convolutional layer (*batch, n, in_channels, h, w) -> (*batch, n, layer.width, h', w'); see
    `dense`.

    layer_norm: "channel" normalises over the channels of each pixel (flax); "chw" normalises over
    channels, height and width with one scale per element (CleanRL's PQN) and needs out_size = (h',
    w'). Raises ValueError without it.
    """
    if layer_norm == "chw" and out_size is None:
        problem = "has a scale per element, so it needs out_size=(height, width)"
        raise ValueError(f"conv: layer_norm 'chw' {problem}")
    batch_shape = np.shape(seeds)
    norms = {
        "none": nn.Identity,
        "channel": functools.partial(LayerNorm, (out_channels,), batch_shape, per_pixel=True),
        "chw": functools.partial(LayerNorm, (out_channels, *(out_size or ())), batch_shape),
    }
    if layer_norm not in norms:
        raise ValueError(f"conv: layer_norm {layer_norm!r}: choose from {' '.join(norms)}")
    sizes = (in_channels, out_channels, kernel_size, stride, padding)
    start = {"seeds": seeds, "init": init, "bias_init": bias_init}
    return _hidden_layer(
        activation,
        functools.partial(Conv2d, *sizes, **start),
        norms[layer_norm],
        out_width=out_channels,
        seeds=seeds,
        rational=rational,
        shared=shared,
        feature_axis=-3,
    )


def mlp(
    in_features: int,
    widths: Sequence[int],
    activation: str,
    seeds,
    layer_norm: bool = False,
    rational: RationalConfig | None = None,
    init: Callable | None = None,
) -> nn.Sequential:
    """Hidden layers of the given widths, one independent network per entry of `seeds`; see `dense`.
    All layers share one coefficient set if rational.share_across_layers. Layer i draws from (seed,
    i)."""
    shared = {} if rational is not None and rational.share_across_layers else None
    layers = []
    for i, width in enumerate(widths):
        layer = dense(
            in_features,
            width,
            activation,
            seeds=_layer_seeds(seeds, i),
            layer_norm=layer_norm,
            rational=rational,
            shared=shared,
            init=init,
        )
        layers.append(layer)
        in_features = layer.width
    return nn.Sequential(*layers)


def _layer_seeds(seeds, layer: int) -> np.ndarray:
    """A separate seed for this layer of each network, in the shape of `seeds`."""
    mixed = []
    for seed in np.ravel(seeds):
        sequence = np.random.SeedSequence([int(seed), layer])
        mixed.append(sequence.generate_state(1, np.uint64)[0] >> 1)  # 63 bits: an int64
    return np.array(mixed, dtype=np.int64).reshape(np.shape(seeds))


def coefficient_groups(network: nn.Module) -> dict[str, CoefficientGroup]:
    """The group of each parameter that belongs to an activation, by its name in
    network.named_parameters(): parameters of a Branch's activation, or of a module that declares
    groups. Raises ValueError if a module declares a parameter that it does not have."""
    groups = {}  # by the parameter's id, since layers may share it
    for module in network.modules():
        if isinstance(module, Branch):
            for parameter in module.activation.parameters():
                groups.setdefault(id(parameter), CoefficientGroup())
        declared = getattr(module, "coefficient_groups", None)
        if declared is None:
            continue
        own = dict(module.named_parameters())
        if unknown := declared.keys() - own.keys():
            kind = type(module).__name__
            raise ValueError(f"{kind}.coefficient_groups: no parameter {' '.join(sorted(unknown))}")
        for name, parameter in own.items():
            groups[id(parameter)] = declared.get(name, CoefficientGroup())
    named = network.named_parameters()
    return {name: groups[id(parameter)] for name, parameter in named if id(parameter) in groups}


def coefficient_names(network: nn.Module) -> set[str]:
    """Names, as in network.named_parameters(), of the parameters that belong to activations, as
    opposed to weights."""
    return set(coefficient_groups(network))
