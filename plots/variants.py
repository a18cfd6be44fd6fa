"""variants."""

import itertools
import json
import zlib
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

import activations
import runlog
from plots.reading import Loaded, is_run, read_run

BLACK, ORANGE, SKY, GREEN, GREY = "#000000", "#E69F00", "#56B4E9", "#009E73", "#999999"

BLUE, RED, PURPLE = "#0072B2", "#D55E00", "#CC79A7"

STYLES = {  # activation: colour, line style, marker (lines must differ in grey print too)
    "relu": (BLACK, "-", "o"),
    "rational": (ORANGE, "--", "s"),
    "crational": (BLUE, "-", "D"),
    "tanh": (GREEN, "--", "^"),
    "tanh_hr": (PURPLE, "-", "v"),
    "sigmoid": (SKY, ":", "P"),
    "relu_hr": (RED, "-.", "X"),
    "crelu": (GREY, "-", "<"),
}


def style(activation: str) -> dict:
    """colour, linestyle and marker of an activation expression; the same in every figure and process."""
    name = canonical(activation)
    k = zlib.crc32(name.encode())
    other = ((RED, SKY, PURPLE, GREEN)[k % 4], ("--", "-.", ":")[k % 3], "*>phd"[k % 5])
    return dict(zip(("color", "linestyle", "marker"), STYLES.get(name, other)))


def check_once(runs: Sequence[Loaded]) -> None:
    """Raises UserError if two of these are one run: a seed of one configuration counts once."""
    seen = {}
    for run in runs:
        kept = {
            key: value
            for key, value in run.config.items()
            if key not in ("status", *runlog.NOT_IDENTITY)
        }
        identity = json.dumps([run.folder.resolve().name.split("__")[1:2], kept], sort_keys=True)
        if identity in seen:
            told = f"{seen[identity]} and {run.folder} are one run, seed {run.config['seed']}"
            raise runlog.UserError(f"{told}; move one away, or name it once")
        seen[identity] = run.folder


def differing(
    configs: Sequence[dict], folders: Sequence[Path], ignored: Collection[str]
) -> tuple[str, dict] | None:
    """The first key, of the union of all keys, in which configurations differ, and value (as JSON; null: not there) ->
    the first folder that has it; None if there is no such key."""
    keys = set().union(*configs) - {*ignored}
    for key in sorted(keys):
        values = {}
        for config, folder in zip(configs, folders):
            values.setdefault(json.dumps(config.get(key), sort_keys=True), folder)
        if len(values) > 1:
            return key, dict(sorted(values.items()))
    return None


def _where(values: dict[str, Path]) -> str:
    return ", ".join(f"{value} in {folder.name}" for value, folder in values.items())


def load(run_folders: Sequence[str | Path], varied: Sequence[str] = ()) -> dict[str, list[Loaded]]:
    """activation -> its runs in the order of their seeds. A folder in which a start failed is left out, with a line.
    Raises UserError if runs differ in anything but `varied`, or one is given twice."""
    runs = []
    for folder in map(Path, run_folders):
        if folder.is_dir() and not is_run(folder):
            print(f"left out: {folder} holds no run (a start that failed?)")
        else:
            runs.append(read_run(folder))
    if not runs:
        raise runlog.UserError("no run folders: give at least one")
    check_once(runs)
    ours = {"activation", "seed", "status", *runlog.NOT_IDENTITY, *varied}
    found = differing([run.config for run in runs], [run.folder for run in runs], ours)
    if found:
        key, values = found
        told = f"the runs differ in {key} ({', '.join(values)}): {_where(values)}"
        raise runlog.UserError(f"{told}; give runs of one setting")
    runs.sort(key=lambda run: run.config["seed"])
    order = [*STYLES, *sorted({run.config["activation"] for run in runs} - {*STYLES})]
    groups = {name: [run for run in runs if run.config["activation"] == name] for name in order}
    return {name: group for name, group in groups.items() if group}


def all_runs(groups: dict[str, list[Loaded]]) -> list[Loaded]:
    """The runs of all groups, in order."""
    return list(itertools.chain.from_iterable(groups.values()))


def _check_seeds(runs: Sequence[Loaded], label: str) -> None:
    """Raises UserError if two of these runs of one setting, in the order of their seeds, have one seed."""
    for one, other in itertools.pairwise(runs):
        if one.config["seed"] == other.config["seed"]:
            told = (
                f"{one.folder} and {other.folder.name} are both {label}, seed {one.config['seed']}"
            )
            raise runlog.UserError(f"{told}; move one away")


SETTINGS = {  # settings that variants of one figure may differ in: what is usual, and how another is called
    "layer_norm": ((False, "none", None), "LayerNorm"),
    "rational.remove_constraint": ((False, None), "no |x/c|^d"),
    "rational.coefficient_weight_decay": ((0.0, None), "decay {}"),
    "rational.init_scale": ((1.0, None), "init {}"),
    "width": ((512, None), "width {}"),
    "redo": ((False, None), "ReDo"),
    "encoder_activation": (("relu", None), "encoder {}"),
}

PAIRED = ("learning_rate", "utd")  # these too; usual is what most runs have

SAC, DQN, PPO, PQN = "sac_continuous", "dqn_atari", "ppo_atari", "pqn_atari"


def canonical(activation: str) -> str:
    """An expression by its alias, if it has one: `tanh*tanh` is tanh_hr, `tanh+tanh` tanh_add."""
    names = activation.split("*")
    known = {expression: alias for alias, expression in activations.ALIASES.items()}
    return (
        f"{names[0]}_hr"
        if len(names) == 2 and names[0] == names[1]
        else known.get(activation, activation)
    )


def _flat(config: dict) -> dict[str, object]:
    """A configuration without what no run's results depend on, `rational.*` at the top level."""
    kept = {
        k: v
        for k, v in config.items()
        if k not in ("rational", "seed", "status", *runlog.NOT_IDENTITY)
    }
    if isinstance(encoder := kept.get("encoder_activation"), list):
        kept["encoder_activation"] = (
            " ".join(encoder) or None
        )  # none: as the last hidden layer (PQN)
    return kept | {f"rational.{k}": v for k, v in config.get("rational", {}).items()}


def _own(config: dict, keys: Sequence[str], script: str) -> dict[str, object]:
    """The settings among `keys` in which a run is not as usual, or, of those without a usual value, all."""
    own = {
        key: config.get(key)
        for key in keys
        if key not in SETTINGS or config.get(key) not in SETTINGS[key][0]
    }
    if script == PQN and "layer_norm" in keys:  # there it is usual that every layer is normalised
        own.pop("layer_norm", None)
        own |= (
            {"layer_norm": config.get("layer_norm")}
            if config.get("layer_norm") != "channel"
            else {}
        )
    return own


def _same(value, text: str) -> bool:
    """Whether a setting is what the command line says."""
    try:
        return value == json.loads(text)
    except ValueError:
        return str(value) == text


def _told(key: str, value) -> str:
    if key == "layer_norm" and value not in (True, "channel"):
        return f"layer norm {value}"  # chw, or PQN's none
    named = f"{key.removeprefix('rational.').replace('_', ' ')} {{}}"
    return SETTINGS.get(key, ("", named))[1].format(
        f"{value:g}" if isinstance(value, float) else value
    )


def looks(variants: Sequence[str]) -> dict[str, dict]:
    """variant -> style: its activation's colour; further variants of one activation have other lines and markers."""
    found, seen = {}, defaultdict(int)
    for name in variants:
        activation = name.split(", ")[0]
        k = seen[activation]
        found[name] = style(activation)
        if k:
            look = {"linestyle": (":", "--", "-.", "-")[k % 4], "marker": "*>phdX"[k % 7 - 1]}
            found[name] |= look | {"markerfacecolor": "white"}
        seen[activation] += 1
    return found
