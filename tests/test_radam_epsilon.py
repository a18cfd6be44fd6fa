"""scripts/radam_epsilon.py: both formulas. `pytest -q tests/test_radam_epsilon.py` (a second)."""

import importlib.util
from pathlib import Path

import torch

SPEC = importlib.util.spec_from_file_location(
    "radam_epsilon", Path(__file__).parent.parent / "scripts" / "radam_epsilon.py"
)
radam_epsilon = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(radam_epsilon)


def test_the_torch_rule_matches_torch_and_the_optax_rule_differs_where_gradients_are_tiny():
    unit = torch.randn(64, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    distances = {}
    for scale in (1e-2, 1e-6):
        ours = radam_epsilon.trajectory(scale * unit, "torch")
        assert torch.allclose(
            ours, radam_epsilon.torch_trajectory(scale * unit), rtol=1e-10, atol=0
        )
        optax = radam_epsilon.trajectory(scale * unit, "optax")
        distances[scale] = radam_epsilon.rms(ours - optax) / radam_epsilon.rms(optax)
    assert distances[1e-2] < 1e-5
    assert 0.03 < distances[1e-6] < 0.06
