"""hr."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import runlog
from plots.curves import _curves, _environments, curve_rows
from plots.intervals import _final
from plots.recording import _print, _write_csv
from plots.study import (
    BASELINE,
    DEAD,
    HUMAN,
    MEDIAN,
    RETURN,
    SRANK,
    Panel,
    Study,
    _chosen,
    _keys,
    _plain,
    _try_study,
    curves,
    read_study,
)
from plots.variants import DQN, PPO, PQN

HR_VARIANTS = ("relu", "tanh", "sigmoid", "tanh_hr", "relu_hr", "crelu", "relu, ReDo")  # of PQN


def hr1(
    runs: Path, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()
) -> list[Path]:
    """HR Figs. 1 and 9: median over games of the human-normalised score, PQN's evaluation games (greedy)."""
    study = _chosen(read_study(runs, PQN, _keys(MEDIAN), where), HR_VARIANTS, variants)
    title = "HR Figs. 1, 9: PQN, median human-normalised score"
    ends = {row["variant"]: row | {"group": "at the end"} for row in curve_rows(study, [MEDIAN])}
    paths = _curves(study, [MEDIAN], out, "hr1", title)
    return paths + _final(study, list(ends.values()), out, "hr1_final", title, MEDIAN)


HR_DQN = {  # figure: (variants, panels)
    "hr7": (["relu", "rational", "tanh", "sigmoid", "tanh_hr"], [DEAD, SRANK, BASELINE]),
    "hr8a": (["relu", "rational", "selu", "tanh", "tanh_hr"], [BASELINE]),
    "hr8b": (
        [
            "tanh_hr",
            "tanh_add",
            "tanh_2hr",
            "tanh, LayerNorm",
            "tanh, width 1024, learning rate 5e-05",
            "tanh",
        ],
        [BASELINE],
    ),
    "hr13": (
        ["tanh", "tanh, width 1024", "tanh, width 1024, learning rate 5e-05", "tanh_hr"],
        [BASELINE, DEAD, SRANK],
    ),
    "hr14": (["tanh", "tanh_hr", "sigmoid", "sigmoid_hr", "relu", "relu_hr"], [DEAD]),
    "hr15": (["relu", "relu_hr"], [BASELINE, DEAD, SRANK]),
}


def hr7(
    runs: Path, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()
) -> list[Path]:
    """HR Figs. 7, 8a-b, 13 to 15 and Table 2: DQN's dead neurons, effective rank and baseline-normalised score."""
    study, paths = read_study(runs, DQN, _keys(DEAD, SRANK, BASELINE), where), []
    for name, (wanted, panels) in HR_DQN.items():
        wanted = variants if variants and name == "hr7" else wanted
        if sum(variant in study.variants for variant in wanted) < 2:
            print(f"{name}: fewer than two of {'; '.join(wanted)} in these runs, not drawn")
            continue
        paths += _curves(study.only(wanted), panels, out, name, f"HR {name[2:]}: DQN")
    rows = dead_table(study)
    if rows:
        paths.append(_write_csv(Path(out) / "hr_table2.csv", rows))
        _print(
            [
                list(rows[0]),
                *(
                    [f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()]
                    for row in rows
                ),
            ]
        )
    return paths


def dead_table(study: Study) -> list[dict]:
    """HR Table 2: dead share averaged over training, seeds and games, of an activation without and with its product,
    over the games that both have."""
    _, found = curves(study, DEAD)
    rows = []
    for base in ("tanh", "sigmoid", "relu"):
        games = [
            env
            for env in study.environments
            if all((v, env) in found for v in (base, f"{base}_hr"))
        ]
        if games:
            without, with_hr = (
                np.mean([np.nanmean(found[v, env]) for env in games]) for v in (base, f"{base}_hr")
            )
            row = {
                "activation": base,
                "games": len(games),
                "without HR": float(without),
                "with HR": float(with_hr),
            }
            row["seeds"] = min(
                found[v, env].shape[-1] for env in games for v in (base, f"{base}_hr")
            )
            rows.append(row | {"change": float(with_hr / without - 1) if without else float("nan")})
    return rows


def hr8(
    runs: Path, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()
) -> list[Path]:
    """HR Figs. 8c-d and 16 to 18: PPO's score and effective rank; human-normalised; DQN and PPO game by game."""
    paths, raw = [], Panel("return of training games", "raw score", "charts/episodic_return")
    for script, game_by_game in ((PPO, "hr18"), (DQN, "hr17")):
        name = script.removesuffix("_atari").upper()
        if (study := _try_study(runs, script, _keys(BASELINE, SRANK), where)) is None:
            continue
        plain = study.only(variants or _plain(study))
        if script == PPO:
            paths += _curves(plain, [BASELINE, SRANK], out, "hr8cd", "HR Fig. 8c-d: PPO")
        paths += _curves(plain, [HUMAN], out, f"hr16_{script[:3]}", f"HR Fig. 16: {name}")
        title = f"HR Fig. {game_by_game[2:]}: {name}, each game"
        paths += _environments(plain, [raw], out, game_by_game, title, plain.environments)
    if not paths:
        raise runlog.UserError(
            f"--runs {runs}: no finished runs of {PPO}.py or {DQN}.py with something to draw"
        )
    return paths


def hr19(
    runs: Path, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()
) -> list[Path]:
    """HR Figs. 19 to 25: PQN's curves game by game, eight games to a page (51 games are seven pages)."""
    panel, paths = Panel("return", "evaluation return", RETURN), []
    study = _chosen(read_study(runs, PQN, _keys(panel), where), HR_VARIANTS, variants)
    for k in range(-(-len(study.environments) // 8)):
        games = study.environments[8 * k : 8 * k + 8]
        paths += _environments(
            study, [panel], out, f"hr{19 + k}", f"HR Fig. {19 + k}: PQN, each game", games
        )
    return paths
