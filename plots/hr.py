"""The figures of HR (arXiv 2406.09079) on Atari; those of single runs are in kde.py and
q_parts.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import runlog
from plots.curves import curve_rows, write_curves, write_environments
from plots.intervals import write_intervals
from plots.panels import RETURN, Panel, curves, keys_of
from plots.reading import Places, places_text
from plots.recording import write_csv
from plots.study import Study, read_study, try_study
from plots.tables import print_table
from plots.variants import DQN, PPO, PQN, Variant, product_of

HIDDEN = r"network/(q|agent)/fc1"
GAMES = r"charts/episodic_return"  # of training games

DEAD = Panel(
    "dead neurons, last hidden layer", "fraction", rf"{HIDDEN}/dead_share", statistic="std"
)
SRANK = Panel("effective rank, last hidden layer", "srank", rf"{HIDDEN}/srank", statistic="std")
OF_BASELINE = "0 and 1: lowest and highest of relu"  # HR eq. 8
BASELINE = Panel("baseline-normalised score", OF_BASELINE, GAMES, score="baseline", statistic="std")
OF_HUMANS = "0: random play, 1: human"  # HR eq. 9
HUMAN = Panel("human-normalised score", OF_HUMANS, GAMES, score="human", statistic="std")
MEDIAN = Panel(
    "median human-normalised score", OF_HUMANS, RETURN, score="human", statistic="median"
)
RETURNS = Panel("return", "evaluation return", RETURN)
GAME_RETURNS = Panel("return of training games", "raw score", GAMES)


def hr1(
    runs: Places, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()
) -> list[Path]:
    """HR Figs. 1 and 9: median over games of PQN's human-normalised score in its (greedy)
    evaluation games."""
    study = read_study(runs, PQN, keys_of(MEDIAN), where).chosen(variants)
    title = "HR Figs. 1, 9: PQN, median human-normalised score"
    ends = {}
    for row in curve_rows(study, [MEDIAN]):
        ends[row["variant"]] = row | {"group": "at the end"}
    paths = write_curves(study, [MEDIAN], out, "hr1", title)
    return paths + write_intervals(study, [*ends.values()], out, "hr1_final", title, MEDIAN)


# ---- DQN -----------------------------------------------------------------------------------------

RELU, TANH, SIGMOID, RATIONAL = (Variant(name) for name in ("relu", "tanh", "sigmoid", "rational"))
RELU_HR, TANH_HR, SIGMOID_HR = (Variant(name) for name in ("relu_hr", "tanh_hr", "sigmoid_hr"))
WIDE = Variant("tanh", {"width": 1024})
WIDE_AND_SLOW = Variant("tanh", {"width": 1024, "learning_rate": 5e-05})
TANH_NORMALISED = Variant("tanh", {"layer_norm": "channel"})


@dataclass(frozen=True)
class DQNFigure:
    """A figure of DQN: the variants of the sweep that it compares, and its panels."""

    name: str
    variants: tuple[Variant, ...]
    panels: tuple[Panel, ...]


DQN_FIGURES = (
    DQNFigure("hr7", (RELU, RATIONAL, TANH, SIGMOID, TANH_HR), (DEAD, SRANK, BASELINE)),
    DQNFigure("hr8a", (RELU, RATIONAL, Variant("selu"), TANH, TANH_HR), (BASELINE,)),
    DQNFigure(
        "hr8b",
        (
            TANH_HR,
            Variant("tanh_add"),
            Variant("tanh_2hr"),
            TANH_NORMALISED,
            WIDE_AND_SLOW,
            TANH,
        ),
        (BASELINE,),
    ),
    DQNFigure("hr13", (TANH, WIDE, WIDE_AND_SLOW, TANH_HR), (BASELINE, DEAD, SRANK)),
    DQNFigure("hr14", (TANH, TANH_HR, SIGMOID, SIGMOID_HR, RELU, RELU_HR), (DEAD,)),
    DQNFigure("hr15", (RELU, RELU_HR), (BASELINE, DEAD, SRANK)),
)


def hr7(
    runs: Places, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()
) -> list[Path]:
    """HR Figs. 7, 8a-b, 13 to 15 and Table 2: DQN's dead neurons, effective rank and
    baseline-normalised score."""
    study = read_study(runs, DQN, keys_of(DEAD, SRANK, BASELINE), where)
    paths = []
    for figure in DQN_FIGURES:
        wanted = [variant.label for variant in figure.variants]
        if variants and figure.name == "hr7":
            wanted = variants
        if len({*wanted} & {*study.labels}) < 2:
            text = f"fewer than two of {'; '.join(wanted)} in these runs, not drawn"
            print(f"{figure.name}: {text}")
            continue
        title = f"HR Fig. {figure.name[2:]}: DQN"
        paths += write_curves(study.only(wanted), figure.panels, out, figure.name, title)
    rows = dead_rows(study)
    if rows:
        paths.append(write_csv(Path(out) / "hr_table2.csv", rows))
        table = [list(rows[0])]
        for row in rows:
            cells = [
                f"{cell:.3f}" if isinstance(cell, float) else f"{cell}" for cell in row.values()
            ]
            table.append(cells)
        print_table(table)
    return paths


def dead_rows(study: Study) -> list[dict]:
    """HR Table 2: dead-neuron fraction of an activation without and with its product, averaged over
    training, seeds and the games that both have."""
    _, found = curves(study, DEAD)
    rows = []
    for base in ("tanh", "sigmoid", "relu"):
        product = product_of(base)
        games = []
        for env in study.environments:
            if (base, env) in found and (product, env) in found:
                games.append(env)
        if not games:
            continue
        without = np.mean([np.nanmean(found[base, env]) for env in games])
        with_product = np.mean([np.nanmean(found[product, env]) for env in games])
        seeds = [found[base, env].shape[-1] for env in games]
        seeds += [found[product, env].shape[-1] for env in games]
        row = {"activation": base, "games": len(games)}
        row |= {"without HR": float(without), "with HR": float(with_product), "seeds": min(seeds)}
        row["change"] = float(with_product / without - 1) if without else float("nan")
        rows.append(row)
    return rows


# ---- PPO and DQN ---------------------------------------------------------------------------------


def hr8(
    runs: Places, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()
) -> list[Path]:
    """HR Figs. 8c-d and 16 to 18: PPO's score and effective rank; human-normalised scores; DQN and
    PPO game by game."""
    paths = []
    for script, number in ((PPO, 18), (DQN, 17)):
        study = try_study(runs, script, keys_of(BASELINE, SRANK), where)
        if study is None:
            continue
        name = script.removesuffix("_atari").upper()
        study = study.only(variants or study.with_only_settings())
        if script == PPO:
            panels = [BASELINE, SRANK]
            paths += write_curves(study, panels, out, "hr8cd", "HR Fig. 8c-d: PPO")
        paths += write_curves(study, [HUMAN], out, f"hr16_{script[:3]}", f"HR Fig. 16: {name}")
        title = f"HR Fig. {number}: {name}, each game"
        games = study.environments
        paths += write_environments(study, [GAME_RETURNS], out, f"hr{number}", title, games)
    if not paths:
        fault = f"no finished runs of {PPO}.py or {DQN}.py with something to draw"
        raise runlog.UserError(f"--runs {places_text(runs)}: {fault}")
    return paths


# ---- PQN, game by game ---------------------------------------------------------------------------


def hr19(
    runs: Places, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()
) -> list[Path]:
    """HR Figs. 19 to 25: PQN's curves game by game, eight games to a page (51 games are seven
    pages)."""
    study = read_study(runs, PQN, keys_of(RETURNS), where).chosen(variants)
    games = study.environments
    paths = []
    for page, start in enumerate(range(0, len(games), 8)):
        name = f"hr{19 + page}"
        title = f"HR Fig. {19 + page}: PQN, each game"
        part = games[start : start + 8]
        paths += write_environments(study, [RETURNS], out, name, title, part)
    return paths
