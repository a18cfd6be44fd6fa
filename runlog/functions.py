"""Which functions the activations of a run are: the name, which is part of its identity, is not
enough."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

import activations
from runlog.terminal import UserError


def functions_of(
    config: Mapping, rational: activations.RationalConfig | None
) -> dict[str, list[float]]:
    """Base name -> activations.values_at_probes, for every activation in these settings. Names
    unknown to this process are left out."""
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


def check_functions(folder: Path, meta: Mapping, current: Mapping, remedy: str) -> None:
    """Raises UserError, ending with the remedy, if an activation has other values here than those
    recorded in the run's meta.json (nothing is checked for runs without such a record)."""
    recorded = meta.get("functions")
    if not isinstance(recorded, dict):  # an older run, or a damaged file
        return
    for name, values in current.items():
        if name in recorded and not _are_equal(recorded[name], values):
            problem = f"{folder} was trained with another function called {name}"
            raise UserError(f"{problem}; {remedy}")


def _are_equal(recorded: list[float], values: list[float]) -> bool:
    """Whether values agree with the recorded ones within a thousandth of the largest: other
    machines round differently, and the fit of a rational may end elsewhere with another version of
    scipy."""
    known = np.array(recorded, float)
    if known.shape != np.shape(values):
        return False
    largest = np.abs(known[np.isfinite(known)]).max(initial=0.0)
    return np.allclose(known, values, rtol=0, atol=1e-3 * largest, equal_nan=True)
