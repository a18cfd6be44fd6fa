"""The table of docs/performance.md that compares SAC with its peers, from the measurements of
benchmarks/sac_updates.py.

    python benchmarks/sac_table.py results/2026-sac-speed

Prints Markdown. Each block of rows was measured in turns; its peers have one seed.
"""

import dataclasses
import json
import sys
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.sac_updates import ONE_THREAD

FILES = {"one_core": "one core", "two_cores": "two cores", "contended": "two cores, busy"}
HEAD = (
    "cores",
    "seeds",
    "variant",
    "seed-updates/s",
    "over SBX",
    "over SB3",
    "over one thread",
    "share of the floor",
)


@dataclasses.dataclass
class Args:
    folder: tyro.conf.Positional[Path] = Path("results/2026-sac-speed")  # of one_core.json, ...


def table(folder: Path) -> list[str]:
    """Lines of Markdown."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for file, where in FILES.items():
        content = json.loads((folder / f"{file}.json").read_text())
        for row in content["rows"]:
            is_left_out = row["mode"] in ("2 branch", ONE_THREAD)
            if not is_left_out:
                lines.append(line(row, where))
    return lines


def line(row: dict, where: str) -> str:
    speed = f"{row['seed_updates_per_s']:.0f}"
    if row["variant"] in ("relu", "crational"):
        speed = f"**{speed}**"
    cells = [where, str(row["seeds"]), row["variant"], speed]
    for ratio in ("speed_over_SBX", "speed_over_SB3", "speed_over_one_thread", "share_of_floor"):
        cells.append(f"{row[ratio]:.2f}" if ratio in row else "")
    return "| " + " | ".join(cells) + " |"


def main(args: Args) -> None:
    print("\n".join(table(args.folder)))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
