"""What a figure compares: variants of a run by their settings, their labels, order and looks.

A variant is an activation with the settings in which its runs differ from the defaults. Its label
is made from these, never the other way round. The colours of the known activations are Okabe and
Ito's, those of others Tol's, safe for the colour-blind. An activation has the same colour and line
style everywhere, except where two of these others would share one in a figure; its variants are
shades of the colour.
"""

import itertools
import json
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.colors import to_hex, to_rgb

import activations
import runlog
from plots.reading import Loaded, check_once, identity, is_run, read_run

SAC = "sac_continuous"
DQN = "dqn_atari"
PPO = "ppo_atari"
PQN = "pqn_atari"

# ---- looks ---------------------------------------------------------------------------------------

BLACK = "#000000"
ORANGE = "#E69F00"
SKY = "#56B4E9"
GREEN = "#009E73"
GREY = "#999999"
BLUE = "#0072B2"
RED = "#D55E00"
PURPLE = "#CC79A7"
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


# for activations without a style: none looks like one of the above, or is pale on white
OTHERS = ("#332288", "#882255", "#999933", "#44AA99", "#EE3377", "#661100", "#AA4499", "#6699CC")
OTHER_LINES = ("--", "-.", ":")
OTHER_MARKERS = "*>phd"


def style_of(activation: str) -> dict[str, str]:
    """color, linestyle and marker of an activation; the same in every figure and process."""
    name = canonical(activation)
    if name in STYLES:
        color, line, marker = STYLES[name]
    else:
        checksum = zlib.crc32(name.encode())  # hash() differs between processes
        color = OTHERS[checksum % len(OTHERS)]
        line = OTHER_LINES[checksum % len(OTHER_LINES)]
        marker = OTHER_MARKERS[checksum % len(OTHER_MARKERS)]
    return {"color": color, "linestyle": line, "marker": marker}


def distinct_styles(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """activation -> style, for the activations of one figure: style_of, but no two have the same
    colour as long as there are others."""
    styles = {}
    taken = set()
    for name in names:
        look = style_of(name)
        free = [color for color in OTHERS if color not in taken]
        if look["color"] in taken and free:
            look["color"] = free[0]
        taken.add(look["color"])
        styles[name] = look
    return styles


def shades(color: str, number: int) -> list[str]:
    """A colour, then number - 1 shades of it, lighter and darker in turn: for a dark colour the
    first is lighter, for black all are."""
    rgb = np.array(to_rgb(color))
    brightness = float(rgb @ (0.3, 0.59, 0.11))
    num_others = number - 1
    num_dark = num_others // 2
    if brightness > 0.45:
        num_dark = num_others - num_dark
    if brightness < 0.15:
        num_dark = 0
    num_light = num_others - num_dark
    darker = [rgb * (1 - 0.55 * k / num_dark) for k in range(num_dark, 0, -1)]
    lighter = [rgb + 0.45 * k / num_light * (1 - rgb) for k in range(num_light, 0, -1)]
    first, second = (darker, lighter) if brightness > 0.45 else (lighter, darker)
    found = [rgb]
    for pair in itertools.zip_longest(first, second):
        found += [shade for shade in pair if shade is not None]
    return [to_hex(shade).upper() for shade in found]


def styles_of(activation_of: Mapping[str, str]) -> dict[str, dict]:
    """label -> style, for labels and their activations: further variants of one activation have
    shades of its colour, other line styles and hollow markers."""
    counts = defaultdict(int)
    for activation in activation_of.values():
        counts[activation] += 1
    base = distinct_styles(counts)
    colours = {name: shades(base[name]["color"], number) for name, number in counts.items()}
    styles = {}
    seen = defaultdict(int)
    for label, activation in activation_of.items():
        number = seen[activation]
        seen[activation] += 1
        styles[label] = base[activation] | {"color": colours[activation][number]}
        if number:
            lines = [
                line for line in ("--", "-.", ":", "-") if line != base[activation]["linestyle"]
            ]
            styles[label]["linestyle"] = lines[(number - 1) % 3]
            styles[label]["marker"] = "*>phdX"[(number - 1) % 6]
            styles[label]["markerfacecolor"] = "white"
    return styles


def styles_in(spec: dict) -> dict[str, dict]:
    """styles_of the variants of an entry of figures.json. In an entry without `activation_of` the
    variants are activations."""
    activation_of = spec.get("activation_of", {})
    return styles_of({label: activation_of.get(label, label) for label in spec["variants"]})


# ---- names and order -----------------------------------------------------------------------------


def canonical(activation: str) -> str:
    """An expression by its alias, if it has one: `tanh*tanh` is tanh_hr, `tanh+tanh` tanh_add."""
    names = activation.split("*")
    if len(names) == 2 and names[0] == names[1]:
        return f"{names[0]}_hr"
    aliases = {expression: alias for alias, expression in activations.ALIASES.items()}
    return aliases.get(activation, activation)


def product_of(activation: str) -> str:
    """The name of an activation's product with itself (HR's hyperactivation)."""
    return canonical(f"{activation}*{activation}")


def is_product(activation: str) -> bool:
    """Whether an activation contains a product of several: HR's, or one in an expression."""
    terms = [activations.ALIASES.get(term, term) for term in activation.split("+")]
    return any("*" in term or term.endswith("_hr") for term in terms)


def in_order(names: Iterable[str]) -> list[str]:
    """Activations in their natural order: those with a style as STYLES lists them, then the others
    by name."""
    found = {*names}
    known = [name for name in STYLES if name in found]
    return known + sorted(found - {*STYLES})


# ---- settings ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """A setting in which the variants of one figure may differ."""

    label: str  # of a value that is not a default; {} is the value
    defaults: tuple = ()
    script_defaults: dict[str, tuple] = field(default_factory=dict)  # script: its defaults


SETTINGS = {
    "layer_norm": Setting("LayerNorm", (False, "none", None), {PQN: ("channel",)}),
    "rational.remove_constraint": Setting("no |x/c|^d", (False, None)),
    "rational.coefficient_weight_decay": Setting("decay {}", (0.0, None)),
    "rational.init_scale": Setting("init {}", (1.0, None)),
    "rational.constraint_schedule": Setting("c {}", ("trained", None)),
    "rational.constraint_scale": Setting("from {}", (5.0, None)),
    "rational.constraint_scale_end": Setting("to {}", (20.0, None)),
    "rational.constraint_fraction": Setting("in {} of the updates", (1.0, None)),
    "rational.constraint_margin": Setting("margin {}", (2.0, None)),
    "rational.constraint_quantile": Setting("quantile {}", (0.99, None)),
    "rational.constraint_momentum": Setting("momentum {}", (0.999, None)),
    "width": Setting("width {}", (512, None)),
    "redo": Setting("ReDo", (False, None)),
    "autotune": Setting("no autotune", (True, None)),
    "init_temperature": Setting("alpha from {}", (1.0, None)),
    # PQN's default, none, is the same activation as in the last hidden layer
    "encoder_activation": Setting("encoder {}", ("relu", None), {PQN: (None,)}),
}
PAIRED = ("learning_rate", "utd")  # settings as well; the default is what most runs have
# What is measured, and how often: part of a run's identity, since its rows differ, but without
# effect on what it learns.
MEASURING = {
    *("log_frequency", "eval_frequency", "num_eval_episodes"),
    *("metrics_frequency", "metrics_samples", "ntk_frequency", "ntk_samples"),
}


def flat(config: dict) -> dict[str, object]:
    """The settings on which a run's results depend, except the seed; `rational.*` at top level."""
    settings = identity(config)
    settings.pop("seed", None)
    rational = settings.pop("rational", {})
    encoder = settings.get("encoder_activation")
    if isinstance(encoder, list):  # empty: as the last hidden layer (PQN)
        settings["encoder_activation"] = " ".join(encoder) or None
    for key, value in rational.items():
        settings[f"rational.{key}"] = value
    return settings


def non_default_settings(settings: dict, keys: Iterable[str], script: str) -> dict[str, object]:
    """The settings among `keys` in which a run differs from the default; settings without a
    default are always included."""
    changed = {}
    for key in keys:
        value = settings.get(key)
        if key in SETTINGS:
            defaults = SETTINGS[key].script_defaults.get(script, SETTINGS[key].defaults)
            if value in defaults:
                continue
        changed[key] = value
    return changed


def setting_label(key: str, value: object) -> str:
    """A setting as labels show it: "init 0.25", "ReDo"."""
    if key == "layer_norm" and value not in (True, "channel"):
        return f"layer norm {value}"  # chw, or PQN's none
    shown = f"{value:g}" if isinstance(value, float) else value
    if key in SETTINGS:
        return SETTINGS[key].label.format(shown)
    name = key.removeprefix("rational.").replace("_", " ")
    return f"{name} {shown}"


@dataclass(frozen=True)
class Variant:
    """An activation, and the settings in which its runs differ from the defaults."""

    activation: str
    settings: dict[str, object] = field(default_factory=dict)

    @property
    def label(self) -> str:
        settings = [setting_label(key, value) for key, value in self.settings.items()]
        return ", ".join([self.activation, *settings])


def sorted_variants(variants: Iterable[Variant]) -> dict[str, Variant]:
    """label -> variant in their natural order: by activation, those with fewer settings first."""
    by_label = {variant.label: variant for variant in variants}
    order = in_order(variant.activation for variant in by_label.values())

    def rank(item: tuple[str, Variant]) -> tuple:
        label, variant = item
        return order.index(variant.activation), len(variant.settings), label

    return dict(sorted(by_label.items(), key=rank))


# ---- runs of one setting -------------------------------------------------------------------------


@dataclass
class Difference:
    """A setting in which runs differ although they must not."""

    key: str
    folders: dict[str, Path]  # value as JSON (null: not there): the first folder that has it

    @property
    def values(self) -> str:
        return ", ".join(self.folders)

    @property
    def where(self) -> str:
        return ", ".join(f"{value} in {folder.name}" for value, folder in self.folders.items())

    @property
    def message(self) -> str:
        """The fault and the remedy, for commands that have --where."""
        first = next(iter(self.folders))
        return (
            f"differ in {self.key} ({self.values}); "
            f"choose by --where {self.key}={first} (null: not there), "
            f"or move some away: {self.where}"
        )


def differing(
    configs: Sequence[dict], folders: Sequence[Path], ignored: Collection[str]
) -> Difference | None:
    """The first setting, of the union of the keys of all configurations, in which they differ."""
    keys = set().union(*configs) - {*ignored}
    for key in sorted(keys):
        found = {}
        for config, folder in zip(configs, folders):
            value = json.dumps(config.get(key), sort_keys=True)
            found.setdefault(value, folder)
        if len(found) > 1:
            return Difference(key, dict(sorted(found.items())))
    return None


def varied_settings(configs: Sequence[dict], keys: Iterable[str]) -> list[str]:
    """The keys for which configurations have more than one value."""
    varied = []
    for key in keys:
        values = {json.dumps(config.get(key)) for config in configs}
        if len(values) > 1:
            varied.append(key)
    return varied


def by_seed(runs: Sequence[Loaded], label: str) -> list[Loaded]:
    """Runs of one setting in the order of their seeds. Raises UserError: a seed is there twice."""
    ordered = sorted(runs, key=lambda run: run.seed)
    for one, other in itertools.pairwise(ordered):
        if one.seed == other.seed:
            fault = f"{one.folder} and {other.folder.name} are both {label}, seed {one.seed}"
            raise runlog.UserError(f"{fault}; move one away")
    return ordered


def load(run_folders: Sequence[str | Path], varied: Sequence[str] = ()) -> dict[str, list[Loaded]]:
    """activation -> its runs in the order of their seeds. A folder in which a start failed is left
    out, with a printed line. Raises UserError if runs differ in anything but `varied`, or one
    occurs twice."""
    runs = []
    for folder in map(Path, run_folders):
        if folder.is_dir() and not is_run(folder):
            print(f"left out: {folder} holds no run (a start that failed?)")
        else:
            runs.append(read_run(folder))
    if not runs:
        raise runlog.UserError("no run folders: give at least one")
    check_once(runs)

    configs = [identity(run.config) for run in runs]
    folders = [run.folder for run in runs]
    if found := differing(configs, folders, {"activation", "seed", *MEASURING, *varied}):
        fault = f"the runs differ in {found.key} ({found.values}): {found.where}"
        raise runlog.UserError(f"{fault}; give runs of one setting")

    runs.sort(key=lambda run: run.seed)
    groups = {}
    for name in in_order(run.config["activation"] for run in runs):
        groups[name] = [run for run in runs if run.config["activation"] == name]
    return groups


def all_runs(groups: Mapping[object, Sequence[Loaded]]) -> list[Loaded]:
    """The runs of all groups, in order."""
    return list(itertools.chain.from_iterable(groups.values()))
