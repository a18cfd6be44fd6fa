"""cards.csv and cards_seeds.csv: one variant, trained with the same seeds on two GPUs.

From the repository's root:

    F=results/2026-dynamic-constraint
    python $F/cards.py runs/cr_reach runs/dynamic $F
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from plots.claims import claim_rows, write_last
from plots.cr_seeds import OF_C, QUANTITIES
from plots.panels import keys_of
from plots.recording import write_csv
from plots.study import Study, read_study
from plots.variants import SAC, all_runs

VARIANT = "crational"
ENVIRONMENT = "metaworld/reach-v3"
EVERYTHING = QUANTITIES + OF_C


def renamed(folder: Path, label: str) -> Study:
    """The variant's runs in a folder, under another label."""
    keys = keys_of(*(quantity.panel for quantity in EVERYTHING))
    study = read_study(folder, SAC, keys, [f"env_id={ENVIRONMENT}"]).only([VARIANT])
    cells = {(label, env): runs for (_, env), runs in study.cells.items()}
    return replace(study, cells=cells, variants={label: study.variants[VARIANT]})


def main(earlier: Path, later: Path, out: Path) -> None:
    one = renamed(earlier, f"{VARIANT}, H200")
    other = renamed(later, f"{VARIANT}, H100")
    both = replace(one, cells=one.cells | other.cells, variants=one.variants | other.variants)
    end = max(run.last_step for run in all_runs(both.cells))
    print(write_csv(out / "cards.csv", claim_rows(both, EVERYTHING, end)))
    print(write_last(both, EVERYTHING, out, "cards_seeds"))


if __name__ == "__main__":
    main(*(Path(word) for word in sys.argv[1:]))
