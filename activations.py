"""Activation functions, the rational family and the Hadamard combinators, for layers with leading batch axes.

An expression such as `tanh*tanh` or `identity*silu` names a hidden layer: its branches (each with its own weights,
bias, norm and coefficients) are multiplied (`*`, the Hadamard representation) or added (`+`, which binds weaker).

    layer = dense(17, 256, "crational", seeds=1)                # one network:   (batch, 17) -> (batch, 256)
    layer = dense(17, 256, "tanh_hr", seeds=[1, 2, 3])          # three seeds:   (3, batch, 17) -> (3, batch, 256)
    layer = conv(4, 32, 8, "crelu", stride=4, seeds=1)          # images: (batch, 4, 84, 84) -> (batch, 64, 20, 20)

`layer.width` is the number of outputs (crelu doubles it). `seeds` fixes the initial weights and, by its shape, the
leading batch axes: parameters of shape `np.shape(seeds) + (...)`. Nothing here draws from the global generators, and
branch k of a layer starts from the same weights whatever the activation is. The layers of a network need different
seeds: two layers of one shape and one seed start equal.

To add an activation, add one entry to ACTIVATIONS (docs/activations.md).
Papers: CR = arXiv 2507.14736 (constrained rationals); HR = arXiv 2406.09079 (Hadamard representations).
"""

import difflib
import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch._functorch.config
import torch.nn as nn
import torch.nn.functional as F
from scipy.optimize import least_squares
from torch.autograd import forward_ad

MAX_POWER = 8  # float32 holds (1e4)^8 = 1e32; one more power of a large coefficient would not be safe


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
    """c of crational's |x/c|^d at the start; the fit does not identify it (least squares drives it to infinity)"""
    train_constraint_scale: bool = True
    """c is trained (as its logarithm, so that it stays positive)"""
    remove_constraint: bool = False
    """ablation: crational without |x/c|^d (a_0 stays removed)"""
    fit_target: str = "leaky_relu"
    """base activation that the initial coefficients are fitted to by least squares"""
    fit_range: tuple[float, float] = (-5.0, 5.0)
    """interval of that fit"""
    init_scale: float = 1.0
    """multiplies the fitted a and b (the low/high initialisation study of CR)"""
    learning_rate: float | None = None
    """step size of the coefficients; None = that of the network"""
    coefficient_weight_decay: float = 0.0
    """decoupled weight decay per unit step size, on the coefficients only (CR)"""
    share_across_layers: bool = False
    """one coefficient set for all layers of a network (the recurrent rational of Delfosse et al. 2021)"""

    def __post_init__(self):
        n, m, d, c = self.numerator_degree, self.denominator_degree, self.constraint_power, self.constraint_scale
        target, (low, high) = self.fit_target, self.fit_range
        rate, decay = self.learning_rate, self.coefficient_weight_decay
        power = min(max(d, 1), MAX_POWER)
        lowest, highest = 10 ** (4 - 36 / power), 10 ** (18 / power)  # |x/c|^d stays in float32 for |x| <= 1e4
        checks = {
            f"numerator-degree {n}: must lie in 1..{MAX_POWER - 1}": 1 <= n < MAX_POWER,
            f"denominator-degree {m}: must lie in 1..{MAX_POWER}": 1 <= m <= MAX_POWER,
            f"constraint-power {d}: must exceed numerator-degree {n}, at most {MAX_POWER}": n < d <= MAX_POWER,
            f"form {self.form!r}: must be A or B": self.form in ("A", "B"),
            f"constraint-scale {c}: must lie in {lowest:.2g}..{highest:.2g}": lowest <= c <= highest,
            f"fit-target {target!r}: {_nearest(target, fit_targets())}": target in fit_targets(),
            f"fit-range {low} {high}: must be two finite numbers, the smaller first": -math.inf < low < high < math.inf,
            f"init-scale {self.init_scale}: must be finite": math.isfinite(self.init_scale),
            f"learning-rate {rate}: must be 0 (frozen) or positive": 0 <= (rate or 0) < math.inf,
            f"coefficient-weight-decay {decay}: must be 0 (off) or positive": 0 <= decay < math.inf,
        }
        for problem, passed in checks.items():
            if not passed:
                raise ValueError(f"--rational.{problem}")


def _horner(x: torch.Tensor, coefficients: list[torch.Tensor]) -> torch.Tensor:
    """sum_k coefficients[k] x^k"""
    return functools.reduce(lambda total, coefficient: coefficient + x * total, reversed(coefficients))


def _is_forward_mode() -> bool:
    """Whether forward-mode derivatives are under way, as in torch.func.hessian, jacfwd and jvp."""
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0


def _absolute(x: torch.Tensor) -> torch.Tensor:
    """|x|. Where its derivative is recorded, the one at 0 is that from the right, 1 (torch's abs: 0), so that second
    derivatives agree with the closed form of the first ones below."""
    recorded = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return torch.where(x >= 0, x, -x) if recorded or _is_forward_mode() else x.abs()


def _rational_parts(x, numerator, denominator, weight, form: str, first: int, power: int):
    """P, Q and S of P/Q, and the coefficients, shaped to broadcast with x. weight = c^-d or None, first: power of a[0],
    power: d. S is what form B takes the absolute value of (form A: None)."""
    ones = (1,) * (x.dim() - numerator.dim() + 1)
    a, b = ([c.reshape(c.shape + ones) for c in t.unbind(-1)] for t in (numerator, denominator))
    p = x * _horner(x, a) if first else _horner(x, a)
    if form == "A":
        s = None
        b = [_absolute(c) for c in b]
        q = 1 + _absolute(x) * _horner(_absolute(x), b)
    else:
        s = x * _horner(x, b)
        q = 1 + _absolute(s)
    if weight is not None:
        weight = weight.reshape(weight.shape + ones)
        q = q + weight * (x * x) ** (power // 2) * (_absolute(x) if power % 2 else 1)
    return p, q, s, a, b, weight


# Compiled code with this function may come from the cache (a warm start is seconds faster): its derivatives are traced
# into the graph whose hash is the key, so that code edited since is compiled anew.
torch._functorch.config.autograd_cache_allow_custom_autograd_functions = True


class _RationalFunction(torch.autograd.Function):
    """P/Q with the derivatives in closed form: one pass over x, nothing saved but x, and sums over the last axis first,
    which compiled code keeps in registers. Where |.| has a kink, at 0, it takes the derivative from the right.

    The derivatives are ordinary operations on what is saved, so they have derivatives too (double backward). In forward
    mode Rational computes P / Q by ordinary operations instead: torch.compile takes no function that defines `jvp`,
    and torch records no tangents inside one, which would make a nested forward mode silently wrong."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, numerator, denominator, weight, form, first, power):
        p, q, *_ = _rational_parts(x, numerator, denominator, weight, form, first, power)
        return p / q

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.form, ctx.first, ctx.power = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, grad):
        x, numerator, denominator, weight = ctx.saved_tensors
        form, first, power, batch_dims = ctx.form, ctx.first, ctx.power, numerator.dim() - 1
        p, q, s, a, b, w = _rational_parts(x, numerator, denominator, weight, form, first, power)
        inverse = 1 / q
        to_p = grad * inverse  # dL/dP
        to_q = -to_p * (p * inverse)  # dL/dQ
        sign = torch.where(x >= 0, 1.0, -1.0).to(x.dtype)
        u = _absolute(x) if form == "A" else x
        slope = _horner(u, [j * c for j, c in enumerate(b, start=1)])
        slope = slope * (sign if form == "A" else torch.where(s >= 0, 1.0, -1.0).to(x.dtype))
        exponents = (power - 1, power) if w is not None else ()
        powers = [(x * x) ** (k // 2) * (_absolute(x) if k % 2 else 1) for k in exponents]
        if powers:
            slope = slope + sign * (power * w) * powers[0]
        grad_x = to_p * _horner(x, [k * c for k, c in enumerate(a, start=first) if k]) + to_q * slope

        def total(t):
            t = t.sum(-1) if t.dim() > batch_dims else t
            return t.flatten(batch_dims).sum(-1) if t.dim() > batch_dims else t

        grad_a, grad_b, t = [], [], to_p * x if first else to_p
        for _ in a:
            grad_a, t = [*grad_a, total(t)], t * x
        t = to_q if form == "A" else to_q * torch.where(s >= 0, 1.0, -1.0).to(x.dtype)
        for _ in b:
            t = t * u
            grad_b.append(total(t))
        grad_b = torch.stack(grad_b, -1) * (torch.where(denominator >= 0, 1.0, -1.0) if form == "A" else 1)
        grad_w = total(to_q * powers[1]) if powers else None
        return grad_x, torch.stack(grad_a, -1), grad_b, grad_w, None, None, None


@functools.lru_cache(maxsize=256)
def fit_rational(config: RationalConfig, constrained: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Least-squares coefficients (a, b) of the rational that approximates config.fit_target on config.fit_range.

    Levenberg-Marquardt on 2,001 even points, in float64; c stays at config.constraint_scale. Started from ones and
    from ones in units of the range, since either may get stuck; a ridge too weak to be seen in the fit stops P and Q
    from growing together without bound. With degrees above 5/4 it can be seen: there the fit goes on with a tenth and
    a hundredth of it where that is clearly better. a holds a_0..a_n (a_1..a_n if constrained). Cached per
    setting. Raises ValueError, led by a flag, where the target is not finite on the range, where the range is too small
    or too large for float64, or where P or Q would overflow float32 within |x| <= 1e4.
    """
    low, high = config.fit_range
    flag = f"--rational.fit-range {low} {high}"
    with np.errstate(all="ignore"):
        x = np.linspace(low, high, 2001)
        target = ACTIVATIONS[config.fit_target].function(torch.from_numpy(x)).numpy()
    if not np.isfinite(x).all():
        raise ValueError(f"{flag}: high - low must be a finite number")
    if not np.isfinite(target).all():
        raise ValueError(
            f"--rational.fit-target {config.fit_target!r}: not finite on --rational.fit-range {low} {high}"
        )
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            best = _least_squares_fit(config, constrained, x, target)
    except (ArithmeticError, ValueError, np.linalg.LinAlgError):  # scipy's words for residuals that are not finite
        best = None
    if best is None or not np.isfinite(best).all():
        n, m = config.numerator_degree, config.denominator_degree
        raise ValueError(f"{flag}: too small or too large a range for powers up to {max(n, m)}; -5 5 is the default")
    if not _lasts_far_out(config, constrained, best):
        raise ValueError(f"--rational.fit-range {config.fit_range}: the fit overflows float32 within |x| <= 1e4")
    if not _lasts_far_out(config, constrained, best, config.init_scale):
        flag = f"--rational.init-scale {config.init_scale}"
        raise ValueError(f"{flag}: P or Q would overflow float32 within |x| <= 1e4; 1 is the default")
    num_a = config.numerator_degree + 1 - int(constrained)
    return tuple(best[:num_a].tolist()), tuple(best[num_a:].tolist())


def _powers(config: RationalConfig, constrained: bool) -> tuple[np.ndarray, np.ndarray]:
    """The powers of x that a and b belong to."""
    return np.arange(int(constrained), config.numerator_degree + 1), np.arange(1, config.denominator_degree + 1)


def _lasts_far_out(config: RationalConfig, constrained: bool, coefficients: np.ndarray, scale: float = 1.0) -> bool:
    """Whether each term of P and Q, times scale, stays within float32 for |x| <= 1e4."""
    i, j = _powers(config, constrained)
    with np.errstate(over="ignore"):
        return bool(np.abs(scale * coefficients * 1e4 ** np.append(i, j)).max() < 1e36)


def _least_squares_fit(config: RationalConfig, constrained: bool, x: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The coefficients a, b of fit_rational for target(x), before anything is checked."""
    i, j = _powers(config, constrained)
    p_basis, q_basis = x[:, None] ** i, (np.abs(x) if config.form == "A" else x)[:, None] ** j
    tail = np.abs(x / config.constraint_scale) ** config.constraint_power
    tail = tail if constrained and not config.remove_constraint else 0.0
    reach = np.abs(x).max()
    ridge = 1e-6 * math.sqrt(x.size) * np.concatenate([reach**i, np.abs(target).max() * reach**j])

    def error(coefficients):
        a, b = coefficients[: i.size], coefficients[i.size :]
        q = q_basis @ np.abs(b) if config.form == "A" else np.abs(q_basis @ b)
        return p_basis @ a / (1 + q + tail) - target

    def residual(coefficients):
        return np.append(error(coefficients), ridge * coefficients)

    starts = np.ones(ridge.size), np.concatenate([1 / reach**i, 1 / reach**j])
    first, second = (least_squares(residual, start, method="lm", max_nfev=1_000) for start in starts)
    best = second.x if second.cost < 0.99 * first.cost else first.x

    if config.numerator_degree <= 5 and config.denominator_degree <= 4:  # the ridge cannot be seen
        return best

    def rmse(coefficients):
        return np.sqrt(np.square(error(coefficients)).mean())

    for _ in range(2):
        if rmse(best) < 1e-4 * np.abs(target).max():  # nothing is left to gain, and the coefficients would only grow
            break
        ridge = ridge / 10
        weaker = least_squares(residual, best, method="lm", max_nfev=50).x
        is_better = rmse(weaker) < 0.98 * rmse(best)
        can_be_trained = np.abs(weaker).max() < 1e3 and _lasts_far_out(config, constrained, weaker)
        if not (is_better and can_be_trained):
            break
        best = weaker
    return best


class Rational(nn.Module):
    """f(x) = P(x) / Q(x), trainable; one coefficient set per module and per leading batch index.

    rational  (OR): P = sum_{i=0..n} a_i x^i; form A: Q = 1 + sum_{j=1..m} |b_j x^j|; B: Q = 1 + |sum_{j=1..m} b_j x^j|.
    crational (CR): P without a_0, so f(0) = 0; Q gains |x/c|^d with d > n, so f -> 0 as |x| -> inf.
    Sources: Molina et al. 2020 (safe Pade units), CR (the constraint). Shapes: numerator (*batch, n + 1, or n if
    constrained), denominator (*batch, m), log_scale (*batch,) = log c; x: (*batch, ..., features), any further axes.

    >>> f = Rational(RationalConfig(), constrained=True)
    >>> f(torch.tensor([0.0, 1e4])).abs().max().item() < 0.01
    True
    """

    def __init__(self, config: RationalConfig, constrained: bool, batch_shape: tuple[int, ...] = ()):
        super().__init__()
        self.config, self.constrained, self.batch_shape = config, constrained, batch_shape
        self.has_constraint = constrained and not config.remove_constraint
        a, b = (config.init_scale * torch.tensor(t) for t in fit_rational(config, constrained))
        self.numerator = nn.Parameter(a.expand(*batch_shape, -1).clone())
        self.denominator = nn.Parameter(b.expand(*batch_shape, -1).clone())
        if self.has_constraint:
            log_scale = torch.full(batch_shape, math.log(config.constraint_scale))
            self.log_scale = nn.Parameter(log_scale, requires_grad=config.train_constraint_scale)

    def scale(self) -> torch.Tensor | None:
        """c, shape (*batch,); None without a constraint."""
        return self.log_scale.exp() if self.has_constraint else None

    def _arguments(self) -> tuple:
        power = self.config.constraint_power
        weight = torch.exp(-power * self.log_scale) if self.has_constraint else None  # c^-d
        return self.numerator, self.denominator, weight, self.config.form, int(self.constrained), power

    def numerator_and_denominator(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(P(x), Q(x)), each of the shape of x."""
        return _rational_parts(x, *self._arguments())[:2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if _is_forward_mode():
            p, q = self.numerator_and_denominator(x)
            return p / q
        return _RationalFunction.apply(x, *self._arguments())

    def extra_repr(self) -> str:
        return f"constrained={self.constrained}, batch_shape={self.batch_shape}, form={self.config.form}"


@dataclass(frozen=True)
class Activation:
    """One base activation: an element-wise `function`, or `build(batch_shape, rational_config)` -> nn.Module where it
    has parameters of its own. Where `width` > 1 the function returns that many tensors, to be joined as features."""

    formula: str
    source: str
    function: Callable[[torch.Tensor], torch.Tensor] | None = None
    build: Callable[[tuple[int, ...], RationalConfig], nn.Module] | None = None
    width: int = 1


ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation("x", "-", lambda x: x),
    "relu": Activation("max(x, 0)", "Nair & Hinton 2010", F.relu),
    "leaky_relu": Activation("max(x, 0.01 x)", "Maas et al. 2013", F.leaky_relu),
    "elu": Activation("x if x > 0 else e^x - 1", "Clevert et al. 2016", F.elu),
    "selu": Activation("1.0507 (x if x > 0 else 1.6733 (e^x - 1))", "Klambauer et al. 2017", F.selu),
    "gelu": Activation("x Phi(x), Phi the normal cdf", "Hendrycks & Gimpel 2016", F.gelu),
    "silu": Activation("x sigmoid(x)", "Elfwing et al. 2018", F.silu),
    "mish": Activation("x tanh(log(1 + e^x))", "Misra 2019", F.mish),
    "softplus": Activation("log(1 + e^x)", "Dugas et al. 2001", F.softplus),
    "tanh": Activation("tanh(x)", "-", torch.tanh),
    "sigmoid": Activation("1 / (1 + e^-x)", "-", torch.sigmoid),
    "crelu": Activation("[max(x, 0), max(-x, 0)]", "Shang et al. 2016", lambda x: (F.relu(x), F.relu(-x)), width=2),
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
ALIASES = {"tanh_2hr": "tanh*tanh*tanh", "tanh_add": "tanh+tanh"}  # and NAME_hr = NAME*NAME for every base name


def fit_targets() -> list[str]:
    """Names that --rational.fit-target takes: the element-wise activations, added ones too."""
    return [name for name, entry in ACTIVATIONS.items() if entry.function is not None and entry.width == 1]


def _nearest(name: str, names, more=()) -> str:
    """The end of an error message: the nearest of `names` and `more`, then the list of `names`."""
    close = difflib.get_close_matches(name.lower(), list(dict.fromkeys([*names, *more])), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{hint}choose from {' '.join(names)}"


def parse(expression: str, flag: str = "--activation") -> list[list[str]]:
    """A sum of products of base names: "tanh_hr" -> [["tanh", "tanh"]], "tanh+relu_hr" -> [["tanh"], ["relu", "relu"]].

    Raises ValueError, led by the flag, with the nearest names and the whole list where a name is unknown.
    """
    products = {f"{name}_hr": f"{name}*{name}" for name in ACTIVATIONS}
    expansions, terms = products | ALIASES | {name: name for name in ACTIVATIONS}, []
    for term in expression.split("+"):
        names = [name.strip() for name in term.split("*")]
        for name in names:
            if not name:
                raise ValueError(f"{flag} {expression!r}: a name is missing; choose from {' '.join(ACTIVATIONS)}")
            if name not in expansions:
                hint = _nearest(name, [*ACTIVATIONS, *ALIASES, "NAME_hr"], expansions)
                raise ValueError(f"{flag} {expression!r}: unknown name {name!r}; {hint}")
            if len(names) > 1 and "+" in expansions[name]:
                raise ValueError(f"{flag} {expression!r}: {name} is a sum ({expansions[name]}), which is no factor")
        terms += [product.split("*") for product in "*".join(expansions[name] for name in names).split("+")]
    if len({ACTIVATIONS[name].width for product in terms for name in product}) > 1:
        raise ValueError(f"{flag} {expression!r}: the widths differ (crelu doubles it)")
    return terms


def check(expression: str, rational: RationalConfig, flag: str = "--activation") -> None:
    """Raises ValueError, led by a flag, unless the expression parses and its rationals can be fitted."""
    for name in {name for product in parse(expression, flag) for name in product}:
        make_activation(name, rational)


def check_encoder(names: tuple[str, ...], rational: RationalConfig) -> None:
    """`check` for the activations of three convolutions: one for all, or three. Raises ValueError."""
    if len(names) not in (1, 3):
        raise ValueError(f"--encoder-activation {' '.join(names)}: give one name, or three")
    for name in names:
        check(name, rational, "--encoder-activation")


class Elementwise(nn.Module):
    """A parameter-free activation as a module, so that hooks see its input and its output."""

    def __init__(self, name: str, feature_axis: int):
        super().__init__()
        self.name, self.feature_axis = name, feature_axis

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        entry = ACTIVATIONS[self.name]
        return entry.function(x) if entry.width == 1 else torch.cat(entry.function(x), self.feature_axis)

    def extra_repr(self) -> str:
        return self.name


def make_activation(name: str, rational: RationalConfig | None = None, batch_shape=(), feature_axis=-1) -> nn.Module:
    """One new module for one base name (no `*` or `+`). Raises ValueError for an unknown name."""
    if name not in ACTIVATIONS:
        raise ValueError(f"--activation {name!r}: {_nearest(name, ACTIVATIONS)}")
    build = ACTIVATIONS[name].build
    return build(tuple(batch_shape), rational or RationalConfig()) if build else Elementwise(name, feature_axis)


def orthogonal(gain: float = math.sqrt(2)) -> Callable:
    """Initialiser of one weight matrix or kernel from a generator; the gain is the same for every activation."""
    return lambda weight, generator: nn.init.orthogonal_(weight, gain, generator=generator)


def fan_in_uniform(weight: torch.Tensor, generator: torch.Generator) -> None:
    """Uniform in +-1 / sqrt(fan_in), torch's default for weights."""
    bound = 1 / math.sqrt(weight[0].numel())
    nn.init.uniform_(weight, -bound, bound, generator=generator)


def he_normal(weight: torch.Tensor, generator: torch.Generator, variance: float = 2.0) -> None:
    """Normal with variance 2 / fan_in, cut off at 2 standard deviations of what is cut (jax's he_normal)."""
    std = math.sqrt(variance / weight[0].numel()) / 0.87962566103423978  # std of a normal cut off at -2 and 2
    nn.init.trunc_normal_(weight, 0.0, std, -2 * std, 2 * std, generator=generator)


def lecun_normal(weight: torch.Tensor, generator: torch.Generator) -> None:
    """Normal with variance 1 / fan_in, cut off likewise (jax's lecun_normal)."""
    he_normal(weight, generator, variance=1.0)


BiasInit = Literal["zero", "uniform"]


def _initialise(shape: tuple[int, ...], seeds, branch: int, init: Callable, *purpose: int) -> torch.Tensor:
    """Parameters (*np.shape(seeds), *shape), each entry drawn from a generator of its own seed, branch and purpose."""
    seeds = np.asarray(seeds)
    drawn = []
    for seed in seeds.ravel():
        entropy = np.random.SeedSequence([int(seed), branch, *purpose]).generate_state(1, np.uint64)[0]
        parameter = torch.empty(shape)
        init(parameter, torch.Generator().manual_seed(int(entropy)))
        drawn.append(parameter)
    return torch.stack(drawn).reshape(*seeds.shape, *shape)


def _initial_biases(shape: tuple[int, ...], seeds, branch: int, bias_init: BiasInit) -> nn.Parameter:
    """Biases of a layer whose weights have `shape`, (out, in, ...): zero, or uniform in +-1 / sqrt(fan_in), which is
    torch's default. They come from a generator of their own: the weights do not depend on the choice."""
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
    """x W + b with leading batch axes: x (*batch, n, in_features), weight (*batch, in, out), bias (*batch, out)."""

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
        # matmul and a separate sum: the sum fuses into the activation, which baddbmm would not allow
        return torch.matmul(x, self.weight) + self.bias.unsqueeze(-2)


class Conv2d(nn.Module):
    """Convolution with leading batch axes: x (*batch, n, channels, height, width), weight (*batch, out, in, k, k)."""

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
    """Layer normalisation over the last `len(shape)` axes, or over the channels of each pixel (axes "channel").

    Scale and bias have shape (*batch, *shape), eps 1e-5 (torch's default).
    """

    def __init__(self, shape: tuple[int, ...], batch_shape=(), per_pixel: bool = False):
        super().__init__()
        self.axes = (-3,) if per_pixel else tuple(range(-len(shape), 0))
        self.per_pixel, self.num_batch = per_pixel, len(batch_shape)
        self.weight = nn.Parameter(torch.ones(*batch_shape, *shape))
        self.bias = nn.Parameter(torch.zeros(*batch_shape, *shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        variance, mean = torch.var_mean(x, self.axes, correction=0, keepdim=True)
        normalised = (x - mean) * torch.rsqrt(variance + 1e-5)
        tail = (..., None, None) if self.per_pixel else (...,)
        weight, bias = self.weight[tail].unsqueeze(self.num_batch), self.bias[tail].unsqueeze(self.num_batch)
        return normalised * weight + bias


class Branch(nn.Module):
    """linear -> norm -> activation, the order of HR (norm, activation, then the product)."""

    def __init__(self, linear: nn.Module, norm: nn.Module, activation: nn.Module):
        super().__init__()
        self.linear, self.norm, self.activation = linear, norm, activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.norm(self.linear(x)))


class HiddenLayer(nn.Module):
    """Sum of products of branches that see the same input (HR, eq. 3 and 4 for one product of two)."""

    def __init__(self, branches: list[Branch], terms: list[list[str]], width: int):
        super().__init__()
        self.branches, self.term_sizes, self.width = nn.ModuleList(branches), [len(t) for t in terms], width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = iter([branch(x) for branch in self.branches])
        products = [functools.reduce(torch.mul, [next(outputs) for _ in range(size)]) for size in self.term_sizes]
        return functools.reduce(torch.add, products)


def _tie_parameters(module: nn.Module, source: nn.Module) -> None:
    """Gives `module` the parameters of `source`; the modules stay two, so that each layer has hooks of its own."""
    for mine, theirs in zip(module.modules(), source.modules(), strict=True):
        for name, parameter in list(theirs.named_parameters(recurse=False)):
            setattr(mine, name, parameter)


def _hidden_layer(expression, make_linear, make_norm, out_width, seeds, rational, shared, feature_axis):
    terms, branches = parse(expression), []
    names = [name for product in terms for name in product]
    for k, name in enumerate(names):
        activation = make_activation(name, rational, np.shape(seeds), feature_axis)
        if shared is not None:  # the i-th `rational` of a layer shares with the i-th of every other
            _tie_parameters(activation, shared.setdefault((name, names[:k].count(name)), activation))
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
    """A hidden layer (*batch, n, in_features) -> (*batch, n, layer.width) with any activation expression.

    seeds: int or nested sequence of ints; its shape is the batch shape. layer_norm: normalise each branch before its
    activation. shared: a dict that the layers of one network pass on, {} at first, to have one coefficient set
    (--rational.share-across-layers). init: see `orthogonal`. bias_init: "zero", or "uniform" in +-1 / sqrt(fan_in).
    Raises ValueError for an unknown name.

    >>> dense(3, 8, "crelu", seeds=[1, 2]).width
    16
    """
    make_linear = functools.partial(Linear, in_features, out_features, seeds=seeds, init=init, bias_init=bias_init)
    make_norm = functools.partial(LayerNorm, (out_features,), np.shape(seeds)) if layer_norm else nn.Identity
    return _hidden_layer(activation, make_linear, make_norm, out_features, seeds, rational, shared, feature_axis=-1)


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
    """A convolution layer (*batch, n, in_channels, h, w) -> (*batch, n, layer.width, h', w'); see `dense`.

    layer_norm: "channel" normalises over the channels of each pixel (flax), "chw" over channels, height and width with
    one scale per element (CleanRL's PQN), which needs out_size = (h', w'). Raises ValueError without it.
    """
    if layer_norm == "chw" and out_size is None:
        raise ValueError("conv: layer_norm 'chw' has a scale per element, so it needs out_size=(height, width)")
    norms = {
        "none": nn.Identity,
        "channel": functools.partial(LayerNorm, (out_channels,), np.shape(seeds), per_pixel=True),
        "chw": functools.partial(LayerNorm, (out_channels, *(out_size or ())), np.shape(seeds)),
    }
    if layer_norm not in norms:
        raise ValueError(f"conv: layer_norm {layer_norm!r}: choose from {' '.join(norms)}")
    sizes, make_norm = (in_channels, out_channels, kernel_size, stride, padding), norms[layer_norm]
    make_linear = functools.partial(Conv2d, *sizes, seeds=seeds, init=init, bias_init=bias_init)
    return _hidden_layer(activation, make_linear, make_norm, out_channels, seeds, rational, shared, feature_axis=-3)


def mlp(in_features: int, widths, activation: str, seeds, layer_norm=False, rational=None, init=None) -> nn.Sequential:
    """Hidden layers of the given widths, one independent network per entry of `seeds`; see `dense`. One coefficient set
    for all layers if rational.share_across_layers. Layer i draws from (seed, i)."""
    layers, shared = [], {} if rational is not None and rational.share_across_layers else None
    for i, width in enumerate(widths):
        mixed = [np.random.SeedSequence([int(s), i]).generate_state(1, np.uint64)[0] >> 1 for s in np.ravel(seeds)]
        layer_seeds = np.array(mixed, dtype=np.int64).reshape(np.shape(seeds))
        options = {"seeds": layer_seeds, "layer_norm": layer_norm, "rational": rational, "shared": shared, "init": init}
        layers.append(dense(in_features, width, activation, **options))
        in_features = layers[-1].width
    return nn.Sequential(*layers)


def coefficient_names(network: nn.Module) -> set[str]:
    """Names, as in network.named_parameters(), of the parameters that belong to activations (not to weights)."""
    modules = network.named_modules()
    found = [m for name, m in modules if name.split(".")[-1] == "activation" or isinstance(m, Rational)]
    coefficients = {id(parameter) for module in found for parameter in module.parameters()}
    return {name for name, parameter in network.named_parameters() if id(parameter) in coefficients}


def parameter_groups(network: nn.Module, learning_rate: float, rational: RationalConfig) -> list[dict]:
    """Groups for a torch optimiser with decoupled weight decay: weights, a and b of rationals, log c.

    As `Adam` below does for stacked seeds: coefficients have rational.learning_rate (None: learning_rate), a and b
    decay by rational.coefficient_weight_decay. Each group keeps its first step size as "initial_lr", for schedules.
    """
    coefficients, own = coefficient_names(network), rational.learning_rate
    own = learning_rate if own is None else own
    groups = {"weights": (learning_rate, 0.0), "a, b": (own, rational.coefficient_weight_decay), "log c": (own, 0.0)}
    members = {name: [] for name in groups}
    for name, parameter in network.named_parameters():
        kind = "weights" if name not in coefficients else "log c" if name.endswith("log_scale") else "a, b"
        members[kind] += [parameter] if parameter.requires_grad else []
    return [
        {"params": members[kind], "lr": lr, "initial_lr": lr, "weight_decay": decay}
        for kind, (lr, decay) in groups.items()
        if members[kind]
    ]


@torch.no_grad()
def recycle_neurons(
    layer: HiddenLayer,
    readers: list[nn.Module],
    dormant: torch.Tensor,
    optimizer: "torch.optim.Optimizer | Adam",
    init: Callable,
    generators: torch.Generator | list[torch.Generator],
) -> torch.Tensor:
    """Recycles the dormant neurons of a layer (ReDo, Sokar et al. 2023), in place; returns how many, (*batch).

    In every branch: incoming weights drawn again by `init`, bias 0, norm scale 1 and bias 0. Weights that read these
    neurons become 0: what reads them loses what they gave, and sees nothing of their new weights. (A LayerNorm between
    divides by another spread then, so that everything it normalises changes.) Of a chain of layers, recycle the first
    one first, as recycle_layers does: a reading neuron that is recycled as well has its incoming weights drawn again
    afterwards, those from recycled neurons too, and its own readers' weights are the ones that become 0. The
    optimiser's moments of all these entries become 0; its step counts and the coefficients of activations stay.

    readers: the Linear and Conv2d that read the layer; a Linear may read it flattened (channel by channel). dormant:
    (*batch, layer.width) bool, on feature maps for convolutions; a neuron with several outputs (crelu) needs all of
    them. generators: one, or a list with one for each batch entry, in order.
    """
    neurons = dormant.unflatten(-1, (-1, layer.branches[0].linear.bias.shape[-1])).all(-2)
    generators = [generators] if isinstance(generators, torch.Generator) else generators
    num_batch = neurons.dim() - 1
    outputs = neurons.repeat(*(1,) * num_batch, layer.width // neurons.shape[-1])

    def put(parameter, mask, axis, values):  # where mask, along an axis counted behind those of the batch
        shape = (*mask.shape[:-1], *(1,) * axis, mask.shape[-1], *(1,) * (parameter.dim() - num_batch - axis - 1))
        mask = mask.view(shape)
        parameter.copy_(torch.where(mask, values, parameter))
        for moment in _moments(optimizer, parameter):
            moment.masked_fill_(mask, 0.0)

    for branch in layer.branches:
        weight, is_dense = branch.linear.weight, isinstance(branch.linear, Linear)
        entries = weight.flatten(0, num_batch - 1) if num_batch else [weight]
        fresh = [torch.empty((w.mT if is_dense else w).shape) for w in entries]
        for each, generator in zip(fresh, generators, strict=True):
            init(each, generator)
        fresh = torch.stack([x.mT if is_dense else x for x in fresh]).view(weight.shape).to(weight)
        put(weight, neurons, 1 if is_dense else 0, fresh)
        put(branch.linear.bias, neurons, 0, 0.0)
        if isinstance(branch.norm, LayerNorm):
            put(branch.norm.weight, neurons, 0, 1.0)
            put(branch.norm.bias, neurons, 0, 0.0)
    for reader in readers:
        if isinstance(reader, Conv2d):
            put(reader.weight, outputs, 1, 0.0)
        else:  # (in_features, out_features); a flattened feature map has height * width features in a row
            features = outputs.repeat_interleave(reader.weight.shape[-2] // layer.width, -1)
            put(reader.weight, features, 0, 0.0)
    return neurons.sum(-1)


def _moments(optimizer, parameter: nn.Parameter) -> list[torch.Tensor]:
    if isinstance(optimizer, Adam):
        return optimizer.moments(parameter)
    state = optimizer.state.get(parameter, {})
    return [state[name] for name in ("exp_avg", "exp_avg_sq") if name in state]


def recycle_layers(layers: list, heads: list, dormant: list, optimizer, init: Callable, generators) -> torch.Tensor:
    """recycle_neurons for a chain of hidden layers, each read by the next and the last by `heads`; returns the share of
    neurons that were recycled, (*batch). dormant: a mask for each layer."""
    following = [[branch.linear for branch in layer.branches] for layer in layers[1:]]
    chain = zip(layers, [*following, heads], dormant)
    recycled = sum(recycle_neurons(*each, optimizer, init, generators) for each in chain)
    return recycled.double() / sum(layer.branches[0].linear.bias.shape[-1] for layer in layers)


class Adam(nn.Module):
    """torch.optim.Adam's rule (Kingma & Ba 2015) for a network with leading seed axes, in place, so
    that it compiles into an update. Its state is in state_dict().

    Activation coefficients are a group of their own: step size rational.learning_rate, decoupled weight decay
    rational.coefficient_weight_decay (Loshchilov & Hutter 2019; not on log c). parameters_: what is trained, in order.
    learning_rate: a number, or a tensor on the network's device that has (the first of) its leading axes: one for each.
    """

    def __init__(self, network: nn.Module, learning_rate, rational: RationalConfig, eps: float = 1e-8):
        super().__init__()
        trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        coefficients, own = coefficient_names(network), rational.learning_rate
        self.names, self.parameters_, self.eps = list(trained), list(trained.values()), eps
        self.lr = [own if name in coefficients and own is not None else learning_rate for name in trained]
        pairs = zip(self.lr, self.parameters_)
        self.lr = [lr.view(*lr.shape, *[1] * (p.dim() - lr.dim())) if torch.is_tensor(lr) else lr for lr, p in pairs]
        decayed = [name in coefficients and not name.endswith("log_scale") for name in trained]
        self.decay = [rational.coefficient_weight_decay if is_decayed else 0.0 for is_decayed in decayed]
        self.register_buffer("count", torch.zeros(()))
        for name, parameter in trained.items():
            self.register_buffer("exp_avg_" + name.replace(".", "_"), torch.zeros_like(parameter))
            self.register_buffer("exp_avg_sq_" + name.replace(".", "_"), torch.zeros_like(parameter))

    def reset(self) -> None:
        """Moments and step count as before the first step."""
        for buffer in self.buffers():
            buffer.zero_()

    def moments(self, parameter: nn.Parameter) -> list[torch.Tensor]:
        """The running means of its gradient and of its square; [] if it is not trained."""
        names = [name.replace(".", "_") for name, p in zip(self.names, self.parameters_) if p is parameter]
        return [self.get_buffer(key + name) for name in names for key in ("exp_avg_", "exp_avg_sq_")]

    def step(self, grads) -> None:
        """One step; grads in the order of parameters_. Call it under torch.no_grad()."""
        self.count += 1
        bias1, bias2 = 1 - 0.9**self.count, (1 - 0.999**self.count).sqrt()
        buffers = dict(self.named_buffers())
        for name, parameter, grad, lr, decay in zip(self.names, self.parameters_, grads, self.lr, self.decay):
            exp_avg, exp_avg_sq = (buffers[key + name.replace(".", "_")] for key in ("exp_avg_", "exp_avg_sq_"))
            exp_avg.lerp_(grad, 0.1)
            exp_avg_sq.lerp_(grad * grad, 0.001)
            direction = exp_avg / bias1 / (exp_avg_sq.sqrt() / bias2 + self.eps)
            parameter.sub_(lr * (direction + decay * parameter))
