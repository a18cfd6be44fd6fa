"""parameters.csv: trained numbers of actor and critics, of the cells that were trained and, for
each product, of the widths around relu's 128 128 count.

From the repository's root:

    python results/2026-hr-sac/parameters.py
"""

import sys
from pathlib import Path

import torch.nn as nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import sac_continuous
from plots.recording import write_csv

SPACES = {  # environment: numbers of an observation and of an action
    "dm_control/cartpole-swingup-v0": (5, 1),
    "dm_control/cheetah-run-v0": (17, 6),
}
REFERENCE = 128


def trained(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def counts(environment: str, activation: str, width: int) -> dict[str, object]:
    """The actor, both critics and their sum; targets and temperature are not counted."""
    args = sac_continuous.Args(activation=activation, widths=(width, width))
    sizes = SPACES[environment]
    actor = trained(sac_continuous.Actor(*sizes, args, 1))
    critics = trained(sac_continuous.SoftQNetworks(*sizes, args, 1))
    row = {"environment": environment, "activation": activation, "width": width}
    return row | {"actor": actor, "critics": critics, "sum": actor + critics}


def main() -> None:
    rows = []
    for environment in SPACES:
        reference = counts(environment, "relu", REFERENCE)
        rows.append(reference)
        for activation in ("tanh_hr", "crational_hr"):
            rows.append(counts(environment, activation, REFERENCE))
            narrow = [counts(environment, activation, width) for width in range(80, 100)]
            narrow.sort(key=lambda row: abs(row["sum"] - reference["sum"]))
            rows += narrow[:2]
    print(write_csv(Path(__file__).parent / "parameters.csv", rows))


if __name__ == "__main__":
    main()
