"""The recipe for a new activation with a parameter of its own (docs/activations.md): one registry
entry, no other file. It is trained, grouped, logged and drawn.

`pytest -q tests/test_add_an_activation.py` (about 10 s)
"""

import json

import pytest
import torch
from test_continual import run
from torch import nn

import figures
from activations import ACTIVATIONS, Activation, CoefficientGroup


class PReLU(nn.Module):
    def __init__(self, batch_shape):
        super().__init__()
        self.slope = nn.Parameter(torch.full(batch_shape, 0.25))
        self.coefficient_groups = {"slope": CoefficientGroup(weight_decay=0.0)}

    def forward(self, x):  # (*batch_shape, ..., features)
        slope = self.slope.reshape(self.slope.shape + (1,) * (x.dim() - self.slope.dim()))
        return x.clamp_min(0) + slope * x.clamp_max(0)


FORMULA = "max(x, 0) + s min(x, 0), s trained"
ENTRY = Activation(FORMULA, "He et al. 2015", build=lambda batch_shape, _: PReLU(batch_shape))
ONE_UPDATE = "--num-train 10 --epochs 1 --num-tasks 1 --num-seeds 2 --log-frequency 1 --plots"
OWN = "--rational.learning-rate 0.05 --rational.coefficient-weight-decay 0.5"


@pytest.fixture(scope="module")
def rows_of_seeds(tmp_path_factory):
    """folder -> (step, key) -> value, of two seeds after one update."""
    folder = tmp_path_factory.mktemp("runs")
    ACTIVATIONS["prelu"] = ENTRY
    try:
        found = run(folder, f"--activation prelu {ONE_UPDATE} {OWN}")
    finally:
        del ACTIVATIONS["prelu"]
    return {folder / name: rows for name, rows in found.items()}


def test_it_trains_with_the_rates_of_its_group_and_is_logged(rows_of_seeds):
    assert len(rows_of_seeds) == 2
    for rows in rows_of_seeds.values():
        values = {key: float(value) for (step, key), value in rows.items() if step == 1}
        for layer in ("fc1", "fc2"):
            slope = values[f"coefficients/{layer}/slope"]
            assert abs(slope - 0.25) == pytest.approx(0.05, rel=1e-4)  # Adam's first step, no decay
            assert values[f"network/classifier/{layer}/slope_norm"] == pytest.approx(abs(slope))
            assert values[f"network/classifier/{layer}/coefficient_gradient_norm"] > 0


def test_it_is_drawn_as_learned(rows_of_seeds):
    for folder in rows_of_seeds:
        assert figures.is_learned(figures.read_run(folder))
        assert (folder / "plots" / "activations.png").stat().st_size > 1_000
        lines = map(json.loads, (folder / "curves.jsonl").read_text().splitlines())
        curves = {row["key"]: row["y"] for row in lines if row["step"] == 1}
        left, right = (curves["network/classifier/fc1/activation"][i] for i in (0, -1))
        slope = float(rows_of_seeds[folder][1, "coefficients/fc1/slope"])
        assert (left, right) == (pytest.approx(-10 * slope, rel=1e-4), 10)
