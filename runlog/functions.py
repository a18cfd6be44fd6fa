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


def check_functions(folder: Path, recorded: Mapping, here: Mapping, remedy: str) -> None:
    """Raises UserError, ended by the remedy, if an activation has other values here than those that
    meta.json of the run has recorded (of a run that has not, nothing is known)."""
    for name, values in here.items():
        known = recorded.get(name)
        if known is None:
            continue
        is_the_same = len(known) == len(values) and np.allclose(
            np.array(known, float), values, rtol=1e-3, atol=1e-5, equal_nan=True
        )
        if not is_the_same:
            told = f"{folder} was trained with another function of the name {name}"
            raise UserError(f"{told}; {remedy}")
