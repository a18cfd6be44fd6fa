"""The table of docs/performance.md that compares SAC with its peers, from what
benchmarks/sac_updates.py measured.

    python benchmarks/sac_table.py results/2026-sac-speed

Prints Markdown. Each block of rows was measured in turns; its peers have one seed.
"""

import dataclasses
import json
from pathlib import Path

import tyro

FILES = {"one_core": "one core", "two_cores": "two cores", "contended": "two cores, busy"}
PEERS = ("floor", "SB3", "SBX")
HEAD = (
    "",
    "seeds",
    "",
    "seed-updates/s",
    "over SBX",
    "over SB3",
    "over one thread",
    "share of the floor",
)


@dataclasses.dataclass
class Args:
    folder: tyro.conf.Positional[Path] = Path("results/2026-sac-speed")  # of one_core.json, ...


def blocks(rows: list[dict]) -> list[list[dict]]:
    """The rows that were measured in turns: our variants, then the floor and the peers."""
    found = []
    before = "SBX"
    for row in rows:
        begins = row["variant"] not in PEERS and before in PEERS
        if begins:
            found.append([])
        found[-1].append(row)
        before = row["variant"]
    return found


def table(folder: Path) -> list[str]:
    """Lines of Markdown."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for file, where in FILES.items():
        content = json.loads((folder / f"{file}.json").read_text())
        for block in blocks(content["rows"]):
            for row in block:
                told_already = row["mode"] in ("2 branch", "compiled, 1 thread")
                if not told_already:
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
