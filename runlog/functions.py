"""Which functions a run's activations are: the name, which is in its identity, does not tell."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

import activations
from runlog.terminal import UserError


def functions_of(
    config: Mapping, rational: activations.RationalConfig | None
) -> dict[str, list[float]]:
    """Base name -> activations.values_at_probes, of every activation that these settings name.
    Names that this process does not know are left out."""
    expressions = [config.get("activation"), *(config.get("encoder_activation") or ())]
    names = []
    for expression in expressions:
        try:
            terms = activations.parse(expression or "")
        except ValueError:
            continue
        for product in terms:
            names += product
    return {name: activations.values_at_probes(name, rational) for name in dict.fromkeys(names)}


def check_functions(folder: Path, meta: Mapping, here: Mapping, remedy: str) -> None:
    """Raises UserError, ended by the remedy, if an activation has other values here than those that
    meta.json of the run has recorded (of a run that has not, nothing is known)."""
    recorded = meta.get("functions")
    if not isinstance(recorded, dict):  # an older run, or a damaged file
        return
    for name, values in here.items():
        if name in recorded and not _are_equal(recorded[name], values):
            problem = f"{folder} was trained with another function of the name {name}"
            raise UserError(f"{problem}; {remedy}")


def _are_equal(recorded: list[float], values: list[float]) -> bool:
    """Whether values are the recorded ones within a thousandth of the largest: another machine
    rounds otherwise, and the fit of a rational may end elsewhere with another scipy."""
    known = np.array(recorded, float)
    if known.shape != np.shape(values):
        return False
    largest = np.abs(known[np.isfinite(known)]).max(initial=0.0)
    return np.allclose(known, values, rtol=0, atol=1e-3 * largest, equal_nan=True)
