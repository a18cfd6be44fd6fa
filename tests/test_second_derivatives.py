"""Second derivatives of rationals, in every mode, against the plain formula P / Q.

Run: pytest -q tests/test_second_derivatives.py
"""

import itertools

import pytest
import torch

from activations import Rational, RationalConfig

X = torch.tensor([-3.1, -0.7, 0.2, 1.9], dtype=torch.float64)
MODES = list(itertools.product((torch.func.jacfwd, torch.func.jacrev), repeat=2))
SHAPES = [("A", 3, 2, 4), ("B", 3, 2, 4), ("A", 1, 1, 2), ("B", 5, 4, 7)]  # form, n, m, d


def rational(form, n, m, d, constrained, batch_shape=()) -> Rational:
    module = Rational(RationalConfig(n, m, form, d), constrained, batch_shape).double()
    generator = torch.Generator().manual_seed(n)
    with torch.no_grad():
        for parameter in (module.numerator, module.denominator):
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def plain(module, parameters, x):
    """P / Q as the docs write it, term by term, from torch's own operations. x: (points,)"""
    a = parameters["numerator"]
    b = parameters["denominator"]
    first = int(module.constrained)
    p = sum(a[i] * x ** (i + first) for i in range(len(a)))
    terms = [b[j] * x ** (j + 1) for j in range(len(b))]
    q = 1 + (sum(term.abs() for term in terms) if module.config.form == "A" else sum(terms).abs())
    if module.constrained:
        q = q + (x / parameters["log_scale"].exp()).abs() ** module.config.constraint_power
    return p / q


def functions(module):
    """A scalar of (x, parameters as one vector), by the module and by the plain formula."""
    named = dict(module.named_parameters())
    sizes = [p.numel() for p in named.values()]

    def unflatten(theta):
        return {name: t.view(p.shape) for (name, p), t in zip(named.items(), theta.split(sizes))}

    def ours(z):
        return (
            torch.func.functional_call(module, unflatten(z[len(X) :]), (z[: len(X)],))
            .square()
            .sum()
        )

    def reference(z):
        return plain(module, unflatten(z[len(X) :]), z[: len(X)]).square().sum()

    return ours, reference, torch.cat([X, *(p.detach().flatten() for p in named.values())])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("constrained", [False, True])
def test_hessians_of_inputs_and_coefficients(shape, constrained):
    ours, reference, z = functions(rational(*shape, constrained))
    expected = torch.func.hessian(reference)(z)
    assert expected.abs().max() > 0.1
    for outer, inner in MODES:
        torch.testing.assert_close(outer(inner(ours))(z), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.func.hessian(ours)(z), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        torch.autograd.functional.hessian(ours, z), expected, rtol=1e-9, atol=1e-9
    )
    points = torch.stack([z, 1.1 * z, -0.9 * z])
    expected = torch.stack([torch.func.hessian(reference)(point) for point in points])
    torch.testing.assert_close(
        torch.vmap(torch.func.hessian(ours))(points), expected, rtol=1e-9, atol=1e-9
    )
    twice = torch.func.jacrev(torch.func.jacrev(ours))
    torch.testing.assert_close(torch.vmap(twice)(points), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", "AB")
@pytest.mark.parametrize("constrained", [False, True])
def test_gradgradcheck_with_a_seed_axis(form, constrained):
    module = rational(form, 3, 2, 4, constrained, batch_shape=(2,))
    names = [name for name, _ in module.named_parameters()]
    x = torch.stack([X, X + 0.3]).requires_grad_()

    def function(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values)), (x,))

    arguments = (x, *(p.detach().clone().requires_grad_() for p in module.parameters()))
    assert torch.autograd.gradcheck(function, arguments, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(
        function, arguments, check_fwd_over_rev=True, check_rev_over_rev=True
    )


@pytest.mark.parametrize("form", "AB")
@pytest.mark.parametrize("power", [2, 4])
def test_at_the_kinks_every_derivative_is_the_one_from_the_right(form, power):
    """At x = 0 and at b = 0: the limits of x and b from above."""
    module = rational(form, power - 1, 1, power, constrained=True)
    ours, _, z = functions(module)
    place_of_b = len(X) + power - 1  # after a_1 .. a_n
    zero = z.clone()
    near = z.clone()
    zero[0] = zero[1] = zero[place_of_b] = 0.0
    near[0] = near[1] = near[place_of_b] = 1e-10
    zero[2:4] = near[2:4] = z[2:4].abs()
    for outer, inner in MODES:
        at_zero = outer(inner(ours))(zero)
        expected = outer(inner(ours))(near)
        torch.testing.assert_close(at_zero, expected, rtol=1e-7, atol=1e-7)
        # torch's own |.|, whose derivative at 0 is 0, would give 0 here
        assert expected[place_of_b, 2].abs() > 1e-3
