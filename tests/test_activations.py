"""Names, values, gradients and fits of the activations. `OMP_NUM_THREADS=1 pytest -q
tests/test_activations.py`"""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import special

import activations
from activations import ACTIVATIONS, Rational, RationalConfig, fit_rational, make_activation, parse

# Klambauer et al. 2017, eq. 14
SELU_SCALE = 1.0507009873554805
SELU_ALPHA = 1.6732632423543772
FORMULAS = {  # in float64, with numpy and scipy only
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "smooth_leaky": lambda x: 0.1 * x + 0.9 * x * special.expit(5 * x / 3),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "selu": lambda x: SELU_SCALE * np.where(x > 0, x, SELU_ALPHA * np.expm1(np.minimum(x, 0))),
    "gelu": lambda x: x * special.ndtr(x),
    "silu": lambda x: x * special.expit(x),
    "mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
    "softplus": lambda x: np.logaddexp(0, x),
    "tanh": np.tanh,
    "sigmoid": special.expit,
}
# Reference constants: fits of leaky ReLU (slope 0.01) on [-5, 5] derived apart from this code, by
# MINPACK from a start of ones on 2,001 points, rounded to the digits shown. (form, n, m, d, c or
# None for the unconstrained rational, a, b)
A54 = (
    (0.049672, 0.618385, 1.393395, 1.097721, 0.320413, 0.032473),
    (-0.684922, 1.580101, -0.187991, 0.044913),
)
REFERENCE_FITS = [
    ("A", 5, 4, 6, None, *A54),
    ("A", 3, 2, 4, None, (0.190766, 0.589163, 0.325280, 0.047786), (0.124443, 0.074542)),
    (
        "B",
        5,
        4,
        6,
        None,
        (0.055954, 0.504994, 0.991587, 0.722910, 0.201000, 0.019716),
        (0, 1.431533, 0, 0.039042),
    ),
    ("B", 3, 2, 4, None, (0.204404, 0.504996, 0.255604, 0.035858), (0, 0.071007)),
    ("A", 3, 2, 4, 5, (0.99008, 0.76, 0.129), (0.88978, 0.06785)),
    ("A", 3, 2, 4, 10, (0.82934, 0.62941, 0.10613), (0.52581, 0.11922)),
    ("B", 3, 2, 4, 5, (1.05471, 0.73608, 0.11685), (-0.96956, -0.03338)),
    ("B", 3, 2, 4, 10, (0.50573, 0.35966, 0.05872), (0.00817, 0.11260)),
    (
        "A",
        5,
        4,
        6,
        5,
        (0.85013, 2.74040, 2.54668, 0.81723, 0.08800),
        (-2.37159, 2.81414, 0.74991, 0.09209),
    ),
    (
        "B",
        5,
        4,
        6,
        5,
        (0.50503, 1.49126, 1.32188, 0.41262, 0.04357),
        (0.00851, 2.59425, 0.01823, 0.08206),
    ),
]
# n, m, d; numbers and forms are enough without fits
DEGREES = [(1, 1, 2), (3, 2, 4), (5, 4, 6), (7, 1, 8), (2, 8, 3)]
FAR = torch.cat([torch.zeros(1), torch.logspace(-30, 4, 400), -torch.logspace(-30, 4, 400)])


def quotient(x: float, form: str, a, b, c: float | None, d: int) -> float:
    """The definition of both rationals, term by term; c None = unconstrained, else a starts at
    a_1."""
    p = sum(value * x ** (i + (c is not None)) for i, value in enumerate(a))
    terms = [value * x**j for j, value in enumerate(b, start=1)]
    q = 1 + (sum(abs(t) for t in terms) if form == "A" else abs(sum(terms)))
    return p / (q + (abs(x / c) ** d if c is not None else 0))


def random_rational(form, n, m, d, constrained, c=1.7, **kwargs) -> Rational:
    """A float64 rational with coefficients from a standard normal, whatever the fit gives."""
    config = RationalConfig(
        n, m, form, d, c, fit_target="identity" if (n, m) == (2, 8) else "leaky_relu", **kwargs
    )
    module = Rational(config, constrained).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (module.numerator, module.denominator):
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def test_every_elementwise_activation_has_a_reference_here():
    others = {"crelu", "fourier", "snake", "rational", "crational"}
    assert {*FORMULAS} | others == set(ACTIVATIONS)
    assert list(FORMULAS) == activations.fit_targets()


@pytest.mark.parametrize("name", FORMULAS)
def test_values_gradients_and_range(name):
    x = np.concatenate([np.linspace(-8, 8, 161), [-1e4, -50.0, 50.0, 1e4]])
    module = make_activation(name)
    for dtype, rtol, atol in [(torch.float64, 1e-9, 1e-12), (torch.float32, 1e-5, 1e-6)]:
        np.testing.assert_allclose(
            module(torch.from_numpy(x).to(dtype)), FORMULAS[name](x), rtol=rtol, atol=atol
        )
    # no kink on the grid
    near = torch.linspace(-3.05, 3.05, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, near)
    y = module(far := FAR.clone().requires_grad_())
    assert y.isfinite().all() and torch.autograd.grad(y.sum(), far)[0].isfinite().all()


def test_crelu_joins_the_feature_axis():
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for axis in (-1, -3):
        reference = np.concatenate([np.maximum(x.numpy(), 0), np.maximum(-x.numpy(), 0)], axis)
        np.testing.assert_array_equal(
            make_activation("crelu", feature_axis=axis)(x).numpy(), reference
        )
    assert torch.autograd.gradcheck(make_activation("crelu"), x[0].clone().requires_grad_())


def test_fourier_joins_sine_and_cosine():
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for axis in (-1, -3):
        reference = np.concatenate([np.sin(x.numpy()), np.cos(x.numpy())], axis)
        found = make_activation("fourier", feature_axis=axis)(x)
        np.testing.assert_allclose(found.numpy(), reference, rtol=1e-14)
    assert torch.autograd.gradcheck(make_activation("fourier"), x[0].clone().requires_grad_())
    assert activations.dense(3, 8, "fourier_hr").width == 16


def test_snake_against_its_formula():
    x = torch.linspace(-8, 8, 161, dtype=torch.float64)
    start = make_activation("snake").double()
    np.testing.assert_allclose(start(x).detach(), x + np.sin(x.numpy()) ** 2, atol=1e-12)
    module = make_activation("snake", batch_shape=(4,)).double()
    a = [0.3, -0.7, 5.0, 0.0]
    with torch.no_grad():
        module.a.copy_(torch.tensor(a))
    found = module(x.expand(4, -1)).detach().numpy()
    for row, value in zip(found[:3], a):
        np.testing.assert_allclose(row, x + np.sin(value * x.numpy()) ** 2 / value, atol=1e-12)
    np.testing.assert_array_equal(found[3], x)  # the limit
    near = x[:160:9].expand(4, -1).clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, a: torch.func.functional_call(module, {"a": a}, x), (near, module.a)
    )
    (grad,) = torch.autograd.grad(module(near).sum(), module.a)
    # not 0, so that a can leave 0
    np.testing.assert_allclose(grad[3].item(), near[3].square().sum().item())
    assert activations.coefficient_names(activations.dense(3, 4, "snake*tanh")) == {
        "branches.0.activation.a"
    }


def test_snake_at_zero_and_far_out():
    """Second derivatives where sin(a x) / (a x) has its limit, and float32 up to 1e4."""
    module = make_activation("snake", batch_shape=(3,)).double()
    with torch.no_grad():
        module.a.copy_(torch.tensor([1.0, -0.7, 0.0]))
    x = torch.tensor([0.0, 1e-3, 0.3, -2.0], dtype=torch.float64).expand(3, -1).clone()
    x.requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda x, a: torch.func.functional_call(module, {"a": a}, x), (x, module.a)
    )
    for order in (torch.func.hessian, torch.func.jacrev):
        found = order(lambda x: x + make_activation("snake")(x).sum())(torch.zeros(()))
        assert found.isfinite()

    far = torch.linspace(-1e4, 1e4, 2001, dtype=torch.float64)
    single = make_activation("snake")
    x = far.float().requires_grad_()
    y = single(x)
    dx, da = torch.autograd.grad(y.sum(), (x, single.a))
    np.testing.assert_allclose(y.detach(), far + far.sin() ** 2, rtol=2e-7, atol=1e-6)
    np.testing.assert_allclose(dx, 1 + (2 * far).sin(), atol=2e-3)
    exact = (far * (2 * far).sin() - far.sin() ** 2).sum()
    np.testing.assert_allclose(da.detach(), exact, rtol=1e-3)


def test_swish_is_silu_wherever_a_name_is_accepted():
    assert parse("swish_hr+tanh*swish") == [["silu", "silu"], ["tanh", "silu"]]
    x = torch.linspace(-5, 5, 11)
    assert torch.equal(make_activation("swish")(x), torch.nn.functional.silu(x))
    fits = [fit_rational(RationalConfig(fit_target=name), True) for name in ("swish", "silu")]
    assert fits[0] == fits[1]
    for expression in ("swish", "identity*swish"):
        activations.check(expression, RationalConfig())


@pytest.mark.parametrize("form", "AB")
@pytest.mark.parametrize("degrees", DEGREES)
@pytest.mark.parametrize("constrained", [False, True])
def test_rational_equals_the_quotient(form, degrees, constrained):
    module = random_rational(form, *degrees, constrained)
    x = [*np.linspace(-6, 6, 97).tolist(), -1e4, -300.0, 1e3, 1e4]
    a = module.numerator.tolist()
    b = module.denominator.tolist()
    c = 1.7 if constrained else None
    d = degrees[2]
    assert (len(a), len(b)) == (degrees[0] + (not constrained), degrees[1])
    expected = [quotient(value, form, a, b, c, d) for value in x]
    y = module(torch.tensor(x, dtype=torch.float64)).detach().numpy()
    # log c is a float32
    np.testing.assert_allclose(y, expected, rtol=1e-6 if constrained else 1e-11, atol=1e-12)
    assert (module.numerator_and_denominator(torch.tensor(x, dtype=torch.float64))[1] >= 1).all()


@pytest.mark.parametrize("form", "AB")
@pytest.mark.parametrize("constrained", [False, True])
def test_rational_gradients(form, constrained):
    module = random_rational(form, 3, 2, 4, constrained)
    parameters = dict(module.named_parameters())
    assert set(parameters) == {"numerator", "denominator"} | (
        {"log_scale"} if constrained else set()
    )
    x = torch.linspace(-3.07, 3.1, 14, dtype=torch.float64, requires_grad=True)

    def function(x, *values):
        return torch.func.functional_call(module, dict(zip(parameters, values)), (x,))

    assert torch.autograd.gradcheck(
        function, (x, *(p.detach().clone().requires_grad_() for p in parameters.values()))
    )


@pytest.mark.parametrize("target", ["leaky_relu", "identity", "softplus"])
@pytest.mark.parametrize("form", "AB")
@pytest.mark.parametrize("degrees", DEGREES)
def test_float32_is_finite_far_out(form, degrees, target):
    n, m, d = degrees
    # the bounds of c
    scales = (
        (5.0, 1.001 * 10 ** (4 - 36 / d), 0.999 * 10 ** (18 / d))
        if target == "leaky_relu"
        else (5.0,)
    )
    for constrained, c in [(False, 5.0), *((True, c) for c in scales)]:
        config = RationalConfig(n, m, form, d, c, fit_target=target)
        module = Rational(config, constrained)
        x = FAR.clone().requires_grad_()
        y = module(x)
        grads = torch.autograd.grad(y.sum(), [x, *module.parameters()])
        assert y.isfinite().all() and all(grad.isfinite().all() for grad in grads), (constrained, c)
        if constrained:
            assert module(torch.zeros(1)).item() == 0


@pytest.mark.parametrize("form", "AB")
def test_crational_vanishes_at_zero_and_far_out(form):
    module = Rational(RationalConfig(form=form), constrained=True)
    assert module(torch.zeros(5)).eq(0).all()
    far = module(torch.tensor([-1e4, -1e3, 1e3, 1e4])).abs()
    assert far[[0, 3]].max() < 0.01 and far[[1, 2]].max() < 0.1
    # f -> a_n c^d x^(n-d)
    law = module.numerator[-1] * module.scale() ** 4 / torch.tensor([-1e4, 1e4])
    torch.testing.assert_close(far[[0, 3]], law.abs(), rtol=1e-2, atol=0)


def test_rational_options():
    fitted = Rational(RationalConfig(), True)
    scaled = Rational(RationalConfig(init_scale=0.5), True)
    torch.testing.assert_close(scaled.numerator, 0.5 * fitted.numerator)
    torch.testing.assert_close(scaled.denominator, 0.5 * fitted.denominator)
    assert scaled.scale().item() == pytest.approx(5)
    assert not Rational(RationalConfig(train_constraint_scale=False), True).log_scale.requires_grad
    free = Rational(RationalConfig(remove_constraint=True), True)
    assert len(free.numerator) == 3
    assert free.scale() is None
    assert free(torch.zeros(1)).item() == 0
    values = free.numerator.tolist(), free.denominator.tolist()
    expected = [quotient(x, "A", *values, math.inf, 4) for x in (-20.0, 3.0)]
    np.testing.assert_allclose(free(torch.tensor([-20.0, 3.0])).tolist(), expected, rtol=1e-5)
    with torch.no_grad():
        fitted.log_scale.fill_(-3.0)  # at any value that training may reach
    assert fitted.scale() > 0


@pytest.mark.parametrize("reference", REFERENCE_FITS, ids=lambda r: f"{r[0]}{r[1]}/{r[2]} c={r[4]}")
def test_fit_agrees_with_the_reference_constants(reference):
    form, n, m, d, c, a, b = reference
    ours = fit_rational(RationalConfig(n, m, form, d, c or 5.0), c is not None)
    x = np.linspace(-5, 5, 401).tolist()
    difference = [quotient(v, form, *ours, c, d) - quotient(v, form, a, b, c, d) for v in x]
    assert max(map(abs, difference)) < 1e-3


@pytest.mark.parametrize("target", FORMULAS)
@pytest.mark.parametrize("constrained", [False, True])
def test_fit_of_every_base_name(target, constrained):
    # on another range, where the target is at most 4; crational's f(0) = 0 costs softplus and
    # sigmoid their value there
    config = RationalConfig(
        5, 4, constraint_power=6, constraint_scale=8.0, fit_target=target, fit_range=(-4.0, 3.0)
    )
    a, b = fit_rational(config, constrained)
    x = np.linspace(-4, 3, 701)
    f = np.array([quotient(v, "A", a, b, 8.0 if constrained else None, 6) for v in x.tolist()])
    rmse = np.sqrt(np.mean((f - FORMULAS[target](x)) ** 2))
    assert rmse < (0.2 if constrained and target in ("softplus", "sigmoid") else 0.02)
    assert max(map(abs, a + b)) < 1e3


def test_fit_follows_the_range():
    # widening the range by s multiplies a_i by s^(1 - i) and b_j by s^-j for a target with f(s x) =
    # s f(x)
    narrow, wide = [fit_rational(RationalConfig(fit_range=(-r, r)), False) for r in (3.0, 5.0)]
    s = 5 / 3
    np.testing.assert_allclose(
        wide[0], [a * s ** (1 - i) for i, a in enumerate(narrow[0])], rtol=1e-3
    )
    np.testing.assert_allclose(wide[1], [b * s**-j for j, b in enumerate(narrow[1], 1)], rtol=2e-3)


def test_a_fit_outside_float32_is_an_error():
    with pytest.raises(ValueError, match=r"^--rational.fit-range .* overflows float32"):
        fit_rational(RationalConfig(7, 2, constraint_power=8, fit_range=(-1e-3, 1e-3)), False)


@pytest.mark.parametrize(
    "form, n, m, constrained, best",
    [
        ("A", 7, 6, False, 0.00110),
        ("B", 7, 6, False, 0.00124),
        ("A", 7, 6, True, 0.00143),
        ("A", 6, 5, False, 0.00228),
    ],
)
def test_the_ridge_does_not_limit_fits_of_high_degree(form, n, m, constrained, best):
    """best: the rmse on [-3, 3]. With the ridge of the default degrees the first was 0.00235."""
    config = RationalConfig(n, m, form, 8, 3.0, fit_range=(-3.0, 3.0))
    a, b = fit_rational(config, constrained)
    x = np.linspace(-3, 3, 2001)
    f = np.array([quotient(v, form, a, b, 3.0 if constrained else None, 8) for v in x.tolist()])
    assert np.sqrt(np.mean((f - FORMULAS["leaky_relu"](x)) ** 2)) < 1.02 * best
    assert max(map(abs, a + b)) < 1e4


DEFAULT_FITS = {  # recorded before the fit had weaker ridges for high degrees
    ("A", False): [0.190764402, 0.589166911, 0.325284408, 0.0477869427, 0.124449041, 0.0745424532],
    ("B", False): [
        0.204404132,
        0.504995727,
        0.255604012,
        0.035857995,
        -6.28038927e-06,
        0.0710069104,
    ],
    ("A", True): [0.990075023, 0.760004732, 0.128998023, 0.889784079, 0.06785324],
    ("B", True): [1.05469653, 0.736073991, 0.116847414, 0.969553108, 0.0333849752],
}


@pytest.mark.parametrize("form, constrained", DEFAULT_FITS)
def test_fits_of_the_default_degrees_are_unchanged(form, constrained):
    """Runs of one name start from the same coefficients for ever, to what MINPACK repeats on other
    machines."""
    a, b = fit_rational(RationalConfig(form=form), constrained)
    np.testing.assert_allclose([*a, *b], DEFAULT_FITS[form, constrained], rtol=1e-5, atol=1e-6)


GRAMMAR = {
    "relu": [["relu"]],
    "tanh_hr": [["tanh"] * 2],
    "tanh_2hr": [["tanh"] * 3],
    "tanh_add": [["tanh"], ["tanh"]],
    " identity * silu ": [["identity", "silu"]],
    "tanh*relu+gelu": [["tanh", "relu"], ["gelu"]],
    "tanh_add+relu_hr": [["tanh"], ["tanh"], ["relu", "relu"]],
    "tanh_hr*relu": [["tanh", "tanh", "relu"]],
    "crelu+crelu_hr": [["crelu"], ["crelu", "crelu"]],
} | {f"{name}_hr": [[name, name]] for name in ACTIVATIONS}


@pytest.mark.parametrize("expression", GRAMMAR)
def test_grammar(expression):
    assert parse(expression) == GRAMMAR[expression]


@pytest.mark.parametrize("expression", ["", " ", "*", "+", "tanh*", "*tanh", "tanh++relu", "relu+"])
def test_a_missing_name_is_an_error(expression):
    with pytest.raises(
        ValueError, match=r"^--activation .*a name is missing; choose from identity relu"
    ):
        parse(expression)


def test_unknown_names_and_names_that_do_not_combine():
    for wrong, nearest in {
        "leakyrelu": "leaky_relu",
        "ReLU": "relu",
        "tanh_rh": "tanh_hr",
        "crationl": "crational",
    }.items():
        with pytest.raises(
            ValueError, match=f"^--encoder-activation .*'{wrong}'; did you mean [^?]*{nearest}"
        ) as error:
            parse(f"tanh*{wrong}", "--encoder-activation")
        assert " ".join([*ACTIVATIONS, "swish", "tanh_2hr", "tanh_add", "NAME_hr"]) in str(
            error.value
        )
    with pytest.raises(ValueError, match=r"'xyzzy'; did you mean \w+\? choose from"):
        parse("xyzzy")  # near to nothing
    # known, but they do not combine
    for wrong in ("crelu*relu", "crelu+tanh", "tanh_add*relu", "relu*tanh_add"):
        with pytest.raises(ValueError, match=r"^--activation .*widths differ|is a sum"):
            parse(wrong)
    with pytest.raises(ValueError, match="did you mean selu"):
        make_activation("sellu")


UNFIT = [  # flag, settings
    ("fit-range -1e-300 1e-300", {"fit_range": (-1e-300, 1e-300)}),
    ("fit-range 0.0 5e-324", {"fit_range": (0.0, 5e-324)}),
    ("fit-range -1e\\+160 1e\\+160", {"fit_range": (-1e160, 1e160)}),
    ("fit-range 1e\\+300 1e\\+301", {"fit_range": (1e300, 1e301), "fit_target": "tanh"}),
    ("fit-range -1.7e\\+308 1.7e\\+308", {"fit_range": (-1.7e308, 1.7e308)}),
    ("fit-range \\(-1e-40, 1e-40\\)", {"fit_range": (-1e-40, 1e-40)}),
    ("init-scale 1e\\+38", {"init_scale": 1e38}),
    ("init-scale -1.7e\\+308", {"init_scale": -1.7e308}),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("flag, settings", UNFIT)
@pytest.mark.parametrize("form", "AB")
@pytest.mark.parametrize("constrained", [False, True])
def test_settings_that_cannot_be_fitted_name_their_flag(flag, settings, form, constrained):
    settings = {"form": form, **settings}
    if flag.endswith("1e-40\\)") and constrained:
        return  # the constraint takes the place of a large b_2
    with pytest.raises(ValueError, match=f"^--rational.{flag}: "):
        Rational(RationalConfig(**settings), constrained)


def test_degrees_too_large_for_a_float_are_errors():
    for name in ("numerator_degree", "denominator_degree", "constraint_power"):
        with pytest.raises(ValueError, match=f"^--rational.{name.replace('_', '-')} "):
            RationalConfig(**{name: 10**400})


WRONG = [
    ("numerator_degree", 0),
    ("numerator_degree", 8),
    ("numerator_degree", 4),
    ("denominator_degree", 0),
]
WRONG += [
    ("denominator_degree", 9),
    ("constraint_power", 3),
    ("constraint_power", 9),
    ("form", "C"),
]
WRONG += [("constraint_scale", value) for value in (0.0, -1.0, 1e-6, 1e7, math.nan, math.inf)]
WRONG += [
    ("fit_target", "crelu"),
    ("fit_target", "rational"),
    ("fit_target", "tahn"),
    ("init_scale", math.nan),
]
WRONG += [("fit_range", r) for r in ((1.0, 1.0), (3.0, -3.0), (-math.inf, 1.0), (0.0, math.nan))]
WRONG += [
    (name, v)
    for name, v in itertools.product(
        ("learning_rate", "coefficient_weight_decay"), (-1.0, math.nan, math.inf)
    )
]


@pytest.mark.parametrize("name, value", WRONG)
def test_wrong_options_name_their_flag(name, value):
    flag = (
        "constraint-power" if (name, value) == ("numerator_degree", 4) else name.replace("_", "-")
    )
    with pytest.raises(ValueError, match=f"^--rational.{flag} "):
        RationalConfig(**{name: value})
    assert RationalConfig(learning_rate=0.0).learning_rate == 0  # frozen is legal
