"""cr."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import runlog
from plots.curves import _curves, _each_environment
from plots.intervals import _final
from plots.preactivations import write_preactivations
from plots.recording import _file_name
from plots.study import (
    BIAS,
    COEFFICIENTS,
    DENOMINATOR,
    HUMAN,
    IQM,
    LARGEST,
    NUMERATOR,
    SUCCESS,
    Panel,
    _chosen,
    _keys,
    _plain,
    _try_study,
    aggregate,
    read_study,
)
from plots.variants import DQN, PQN, SAC

CR_VARIANTS = ("relu", "rational", "crational")


def cr1(
    runs: Path, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()
) -> list[Path]:
    """CR Fig. 1: IQM at the end of training, over Meta-World (success), DMC (return / 1,000) and both."""
    study, rows = _chosen(read_study(runs, SAC, _keys(IQM), where), CR_VARIANTS, variants), []
    suites = {"Meta-World": "metaworld/", "DMC": "dm_control/", "all": ""}
    for title, prefix in suites.items():
        for name, curve in aggregate(study, dataclasses.replace(IQM, suite=prefix)).items():
            ends = {key: float(curve[key][-1]) for key in ("value", "low", "high", "step")}
            own = {"environments": curve["environments"], "runs": curve["runs"]}
            rows.append({"group": title, "variant": name, **ends, **own})
    return _final(study, rows, out, "cr1", "CR Fig. 1: IQM at the end of training", IQM)


def cr_curves(
    runs: Path, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()
) -> list[Path]:
    """CR's curves: IQM, success, overestimation, gradients of the coefficients, their growth; and per environment."""
    panels = [IQM, SUCCESS, BIAS, COEFFICIENTS, NUMERATOR, DENOMINATOR, LARGEST]
    study = _chosen(read_study(runs, SAC, _keys(*panels), where), CR_VARIANTS, variants)
    paths = _curves(study, panels, out, "cr_curves", "CR: SAC over training")
    return paths + _each_environment(
        study, out, "cr_curves_environments", "CR: SAC, each environment"
    )


def cr_ablations(
    runs: Path, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()
) -> list[Path]:
    """CR's ablations: LayerNorm, decay and initial scale of the coefficients, without |x/c|^d, UTD; pre-activations."""
    panels = [IQM, SUCCESS, BIAS, COEFFICIENTS, LARGEST]
    study = read_study(runs, SAC, _keys(*panels), where)
    paths = []
    taken = set()
    study = study.only(variants) if variants else study
    groups = {
        "layer_norm": "layer_norm",
        "weight_decay": "rational.coefficient_weight_decay",
        "init": "rational.init_scale",
        "constraint": "rational.remove_constraint",
    }
    for name, setting in groups.items():
        members = [v for v, own in study.settings.items() if not {*own} - {"activation", setting}]
        varied = {study.settings[v]["activation"] for v in members if setting in study.settings[v]}
        varied |= {"rational"} if name == "constraint" and varied else set()
        members = [v for v in members if study.settings[v]["activation"] in varied]
        title = f"CR ablation: {name.replace('_', ' ')}"
        paths += (
            _curves(study.only(members), panels, out, f"cr_ablations_{name}", title)
            if varied
            else _none(name)
        )
    plain = study.only(
        [v for v, own in study.settings.items() if not {*own} - {"activation", "utd"}]
    )
    varied = "utd" in study.usual
    paths += (
        _curves(plain, panels, out, "cr_ablations_utd", "CR ablation: UTD")
        if varied
        else _none("utd")
    )
    paths += _each_environment(
        study, out, "cr_ablations_environments", "CR ablations: each environment"
    )
    for env in study.environments:
        cells = [study.cells[v, env] for v in _plain(study) if (v, env) in study.cells]
        folders = [run.folder for each in cells for run in each]
        name = _file_name(f"cr_ablations_preactivations-{env.rpartition('/')[2]}", taken)
        if folders and any((folder / "histograms.jsonl").exists() for folder in folders):
            paths += write_preactivations(folders, Path(out), name)
    return paths


def _none(name: str) -> list[Path]:
    print(f"cr_ablations_{name}: no runs vary it, not drawn")
    return []


def cr_atari(
    runs: Path, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()
) -> list[Path]:
    """CR, Atari: score, mean Q and the coefficients' gradient of DQN and PQN; is anything unstable?"""
    panels = [
        dataclasses.replace(HUMAN, statistic="mean"),
        Panel(
            "mean Q on the batch",
            "clipped return",
            "losses/q_mean",
            statistic="mean",
            scale="symlog",
        ),
        Panel(
            "gradient of Q's coefficients",
            "L2 norm",
            "network/q/coefficient_gradient_norm",
            statistic="mean",
        ),
    ]
    paths = []
    for script in (DQN, PQN):
        if (study := _try_study(runs, script, _keys(*panels), where)) is not None:
            own = {
                v: {*s} - {"activation", "encoder_activation"} for v, s in study.settings.items()
            }
            study = study.only(
                [
                    v
                    for v in own
                    if not own[v] and v.split(", ")[0] in ("relu", "rational", "crational")
                ]
            )
            study = study.only(variants) if variants else study
            title = f"CR, Atari: {script.removesuffix('_atari').upper()}"
            paths += _curves(study, panels, out, f"cr_atari_{script[:3]}", title)
    if not paths:
        raise runlog.UserError(
            f"--runs {runs}: no finished runs of {DQN}.py or {PQN}.py with relu or a rational"
        )
    return paths
