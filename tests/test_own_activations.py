"""Activations that users add: what is wrong with one is said in a line before anything is trained,
and a run knows the function that it was trained with.

`pytest -q tests/test_own_activations.py` (seconds)
"""

import json

import numpy as np
import pytest
import torch
from test_batch import Args, train
from torch import nn

import activations
import reports
import runlog
from activations import ACTIVATIONS, Activation, RationalConfig, check, dense, values_at_probes
from runlog.functions import check_functions


class Slope(nn.Module):
    """A trained slope of each seed."""

    def __init__(self, batch_shape):
        super().__init__()
        self.slope = nn.Parameter(torch.full(batch_shape, 2.0))

    def forward(self, x):
        return self.slope.reshape(self.slope.shape + (1,) * (x.dim() - self.slope.dim())) * x


FAULTY = {
    r"ACTIVATIONS\['a\+b'\]: a name has": ("a+b", {"function": torch.tanh}),
    "needs either a function or a build": ("mine", {}),
    "mine: its Activation needs either": (
        "mine",
        {"function": torch.tanh, "build": lambda shape, _: Slope(shape)},
    ),
    "changes its input in place": ("mine", {"function": lambda x: x.relu_()}),
    "parameter weight has the shape \\(1,\\) for 2 seeds": (
        "mine",
        {"build": lambda shape, _: nn.PReLU()},
    ),
    "returns a tuple.*width=2": ("mine", {"function": lambda x: (x, -x)}),
    r"to torch.float32 \(2, 3, 10\)": ("mine", {"function": lambda x: torch.cat([x, -x], -1)}),
    "to torch.bool": ("mine", {"function": lambda x: x > 0}),
    r"fails on a tensor \(2, 3, 5\): TypeError": ("mine", {"function": torch.tanh, "width": 2}),
    "fails on a tensor.*ZeroDivisionError": ("mine", {"function": lambda x: x * (1 / 0)}),
    r"its build\(\(2,\), rational\) fails: TypeError": ("mine", {"build": lambda shape: None}),
}


@pytest.mark.parametrize("message", FAULTY)
def test_a_faulty_activation_is_an_error_before_anything_is_created(message, monkeypatch):
    name, entry = FAULTY[message]
    monkeypatch.setitem(ACTIVATIONS, name, Activation("?", "a test", **entry))
    with pytest.raises(ValueError, match=message):
        check("mine_hr", RationalConfig())


def test_valid_activations_pass_and_draw_nothing_from_the_global_generator(monkeypatch):
    mine = Activation("2 x", "a test", build=lambda shape, _: Slope(shape))
    monkeypatch.setitem(ACTIVATIONS, "mine", mine)
    noisy = Activation("x + noise", "a test", lambda x: x + torch.rand_like(x))
    monkeypatch.setitem(ACTIVATIONS, "noisy", noisy)
    before = torch.random.get_rng_state()
    for name in ACTIVATIONS:
        check(f"{name}_hr", RationalConfig())
        assert values_at_probes(name) == values_at_probes(name)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_values_at_probes_match_the_function():
    probes = np.array(activations.PROBES)
    np.testing.assert_allclose(values_at_probes("tanh"), np.tanh(probes), rtol=1e-6)
    pairs = np.stack([np.maximum(probes, 0), np.maximum(-probes, 0)], 1)
    np.testing.assert_allclose(values_at_probes("crelu"), pairs.ravel(), rtol=1e-6)
    wide = RationalConfig(init_scale=2.0)
    assert not np.allclose(values_at_probes("rational", wide), values_at_probes("rational"))


def test_a_report_refuses_an_activation_that_changes_its_input(monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "mine", Activation("?", "a test", lambda x: x.relu_()))
    layer = nn.Sequential(dense(3, 4, "mine", seeds=1))
    with (
        pytest.raises(RuntimeError, match="changes its input in place"),
        reports.record_layers(layer),
    ):
        layer(torch.randn(5, 3))


def test_functions_are_compared_to_a_thousandth_of_the_largest_value():
    def are_equal(known, here):
        try:
            check_functions("run", {"functions": {"f": known}}, {"f": here}, "rename it")
        except runlog.UserError:
            return False
        return True

    assert are_equal([0.0, 2.0, np.inf, np.nan], [0.0019, 2.0, np.inf, np.nan])
    assert not are_equal([0.0, 2.0, np.inf, np.nan], [0.0021, 2.0, np.inf, np.nan])
    assert not are_equal([0.0, 2.0], [0.0, np.inf])
    assert not are_equal([0.0, 2.0], [0.0, 2.0, 0.0])
    for damaged in ({}, {"functions": None}, {"functions": "?"}):
        check_functions("run", damaged, {"f": [1.0]}, "rename it")


def test_a_run_is_refused_where_its_activation_is_another_function(tmp_path, monkeypatch):
    def define(factor: float) -> None:
        function = Activation("?", "a test", lambda x: factor * torch.tanh(x))
        monkeypatch.setitem(ACTIVATIONS, "mine", function)

    define(1.0)
    args = Args(activation="mine_hr", runs_dir=str(tmp_path))
    train(args)
    (run,) = runlog.seed_runs(args, "walk")
    recorded = json.loads((run.folder / "meta.json").read_text())["functions"]
    np.testing.assert_allclose(recorded["mine"], np.tanh(activations.PROBES), rtol=1e-6)
    define(1.0 + 1e-5)  # rounding on another machine
    train(args)
    assert runlog.load(run.folder, Args).status == "finished"
    define(1.1)
    with pytest.raises(runlog.UserError, match="another function called mine; give the new"):
        train(args)
    with pytest.raises(runlog.UserError, match="another function called mine; load it where"):
        runlog.load(run.folder, Args)
    # neither finished, nor of a version that recorded functions
    meta = json.loads((run.folder / "meta.json").read_text())
    (run.folder / "meta.json").write_text(json.dumps(meta | {"status": "interrupted"}))
    with pytest.raises(runlog.UserError, match="another function"):
        train(args)
    del meta["functions"]
    (run.folder / "meta.json").write_text(json.dumps(meta))
    train(args)
    define(2.0)
    monkeypatch.setattr(args, "fresh", True)
    train(args)
    assert runlog.load(run.folder, Args).meta["functions"]["mine"][-1] == pytest.approx(
        2 * np.tanh(3.0)
    )
