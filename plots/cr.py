"""The figures of CR (arXiv 2507.14736) with reinforcement learning."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import runlog
from environments import suites
from plots.curves import write_curves, write_environments
from plots.intervals import write_intervals
from plots.panels import RETURN, Panel, aggregate, keys_of
from plots.preactivations import write_preactivations
from plots.reading import Places, places_text
from plots.recording import file_name
from plots.study import Study, read_study, try_study
from plots.variants import DQN, PQN, SAC, Variant

CRITICS = r"network/qf\d"
LAYERS = rf"{CRITICS}/fc\d+/(branch\d+_)?"

IQM = Panel("IQM, normalised", "return / 1,000 or success", RETURN, score="suite")
SUCCESS = Panel(
    "success, Meta-World", "rate (any step)", "eval/success", suite=suites.METAWORLD.prefix
)
BIAS = Panel(
    "overestimation",
    "(Q - G) / max(|G|, 10)",
    "overestimation/normalised",
    statistic="mean",
    scale="symlog",
)
COEFFICIENTS = Panel(
    "coefficient gradient, critics",
    "L2 norm",
    rf"{CRITICS}/coefficient_gradient_norm",
    statistic="mean",
    scale="log",
)
NUMERATOR = Panel(
    "numerator, critics",
    "L2 norm of the coefficients",
    rf"{LAYERS}numerator_norm",
    scale="log",
)
DENOMINATOR = Panel(
    "denominator, critics",
    "L2 norm of the coefficients",
    rf"{LAYERS}denominator_norm",
    scale="log",
)
LARGEST = Panel("largest output", "max |f(x)|, critics", rf"{LAYERS}f_max", "max", scale="log")
RETURNS = Panel("return", "evaluation return", RETURN)


def cr1(
    runs: Places, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()
) -> list[Path]:
    """CR Fig. 1: IQM at the end of training, over Meta-World (success), DMC (return / 1,000) and
    both."""
    study = read_study(runs, SAC, keys_of(IQM), where).chosen(variants)
    groups = {suite.title: suite.prefix for suite in suites.SUITES}
    groups["all"] = ""
    rows = []
    for title, prefix in groups.items():
        for label, curve in aggregate(study, replace(IQM, suite=prefix)).items():
            end = curve.points()[-1]
            row = {"group": title, "variant": label}
            row |= {key: end[key] for key in ("value", "low", "high", "step")}
            row |= {"environments": curve.environments, "runs": curve.runs}
            rows.append(row)
    title = "CR Fig. 1: IQM at the end of training"
    return write_intervals(study, rows, out, "cr1", title, IQM)


def cr_curves(
    runs: Places, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()
) -> list[Path]:
    """CR's curves: IQM, success, overestimation, gradients and growth of the coefficients; and
    curves of each environment."""
    panels = [IQM, SUCCESS, BIAS, COEFFICIENTS, NUMERATOR, DENOMINATOR, LARGEST]
    study = read_study(runs, SAC, keys_of(*panels), where).chosen(variants)
    paths = write_curves(study, panels, out, "cr_curves", "CR: SAC over training")
    title = "CR: SAC, each environment"
    return paths + each_environment(study, out, "cr_curves_environments", title)


def each_environment(study: Study, out: Path, name: str, title: str) -> list[Path]:
    """Return, overestimation, gradient of the coefficients and largest output, five environments
    to a page."""
    panels = [RETURNS, BIAS, COEFFICIENTS, LARGEST]
    environments = study.environments
    starts = range(0, len(environments), 5)
    paths = []
    for number, start in enumerate(starts, start=1):
        page = f"{name}_{number}" if len(starts) > 1 else name
        part = environments[start : start + 5]
        paths += write_environments(study, panels, out, page, title, part)
    return paths


# ---- ablations -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ablation:
    """A figure of the variants that differ in one setting."""

    name: str
    setting: str
    title: str
    is_against_rational: bool = False  # also compare variants without a constraint with rational


ABLATIONS = (
    Ablation("layer_norm", "layer_norm", "layer norm"),
    Ablation("weight_decay", "rational.coefficient_weight_decay", "weight decay"),
    Ablation("init", "rational.init_scale", "init"),
    Ablation("constraint", "rational.remove_constraint", "constraint", True),
)


def cr_ablations(
    runs: Places, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()
) -> list[Path]:
    """CR's ablations: LayerNorm, decay and initial scale of the coefficients, without |x/c|^d, UTD;
    pre-activations."""
    panels = [IQM, SUCCESS, BIAS, COEFFICIENTS, LARGEST]
    study = read_study(runs, SAC, keys_of(*panels), where)
    if variants:
        study = study.only(variants)
    paths = []
    for ablation in ABLATIONS:
        members = ablated(study, ablation)
        name = f"cr_ablations_{ablation.name}"
        title = f"CR ablation: {ablation.title}"
        if members:
            paths += write_curves(study.only(members), panels, out, name, title)
        else:
            print(f"{name}: no runs vary it, not drawn")
    if "utd" in study.common:
        members = study.only(study.with_only_settings("utd"))
        paths += write_curves(members, panels, out, "cr_ablations_utd", "CR ablation: UTD")
    else:
        print("cr_ablations_utd: no runs vary it, not drawn")
    title = "CR ablations: each environment"
    paths += each_environment(study, out, "cr_ablations_environments", title)
    return paths + ablations_preactivations(study, out)


def ablated(study: Study, ablation: Ablation) -> list[str]:
    """The variants of the activations for which some run varies the setting; [] if none."""
    members = {label: study.variants[label] for label in study.with_only_settings(ablation.setting)}
    varied = set()
    for variant in members.values():
        if ablation.setting in variant.settings:
            varied.add(variant.activation)
    if varied and ablation.is_against_rational:
        varied.add("rational")
    return [label for label, variant in members.items() if variant.activation in varied]


def ablations_preactivations(study: Study, out: Path) -> list[Path]:
    """The pre-activations of the plain variants, a figure for each environment."""
    paths = []
    taken = set()
    plain = study.with_only_settings()
    for env in study.environments:
        folders = []
        for label in plain:
            folders += [run.folder for run in study.cells.get((label, env), ())]
        short = env.rpartition("/")[2]
        name = file_name(f"cr_ablations_preactivations-{short}", taken)
        if any((folder / "histograms.jsonl").exists() for folder in folders):
            paths += write_preactivations(folders, Path(out), name)
    return paths


# ---- Atari ---------------------------------------------------------------------------------------

ATARI = [
    Panel(
        "human-normalised score",
        "0: random play, 1: human",  # HR eq. 9
        "charts/episodic_return",
        score="human",
        statistic="mean",
    ),
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


def is_of_rationals(variant: Variant) -> bool:
    """Whether a variant is relu or a rational, plain or with an encoder activation of its own."""
    is_plain = not {*variant.settings} - {"encoder_activation"}
    return is_plain and variant.activation in ("relu", "rational", "crational")


def cr_atari(
    runs: Places, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()
) -> list[Path]:
    """CR, Atari: score, mean Q and gradient of the coefficients of DQN and PQN, to see whether
    anything is unstable."""
    paths = []
    for script in (DQN, PQN):
        study = try_study(runs, script, keys_of(*ATARI), where)
        if study is None:
            continue
        members = [label for label in study.labels if is_of_rationals(study.variants[label])]
        study = study.only(variants or members)
        title = f"CR, Atari: {script.removesuffix('_atari').upper()}"
        paths += write_curves(study, ATARI, out, f"cr_atari_{script[:3]}", title)
    if not paths:
        fault = f"no finished runs of {DQN}.py or {PQN}.py with relu or a rational"
        raise runlog.UserError(f"--runs {places_text(runs)}: {fault}")
    return paths
