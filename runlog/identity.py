"""The identity of a run: the settings that change its results, their hash, and the name of its
folder.

A field of a script's `Args` belongs to the identity of the run unless it is declared otherwise:

    gamma: float = 0.99  # changes results: other values are other runs
    device: str = runlog.option("auto")  # does not change results
    warmup: int = runlog.added(0)  # added later: at its default, the runs are those from before it
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Collection, Iterator, Sequence

NEVER = "never"
UNLESS_DEFAULT = "unless default"
SHORT_NAME_ENV = 40  # characters of a short name for the environments
SHORT_NAME_ACTIVATION = 60
# Fields outside the identity for runs that started before meta.json recorded them
# ("not_identity"). No new runs of this kind appear, so nothing is ever added here.
BEFORE_META_SAID_SO = (
    *("num_seeds", "device", "threads", "env_threads", "compile", "cudagraphs", "async_envs"),
    *("runs_dir", "fresh", "analyse", "keep_replay", "checkpoint_frequency", "checkpoint_minutes"),
    *("evaluate", "print_network", "capture_video", "tensorboard", "data_dir", "plots", "track"),
    *("wandb_project", "wandb_entity", "activations", "shallow_units", "deep_activations"),
    *("deep_widths", "learning_rates", "out", "table1_neurons"),
)


def option(default):
    """A field of `Args` that does not change the results of a run, and is therefore not part of its
    identity."""
    return dataclasses.field(default=default, metadata={"identity": NEVER})


def added(default):
    """A field of `Args` that is newer than some runs: it belongs to a run's identity unless it has
    its default, which must reproduce what those runs did.

    A nested configuration declares the same with `dataclasses.field(default=...,
    metadata={"identity": "unless default"})`.
    """
    return dataclasses.field(default=default, metadata={"identity": UNLESS_DEFAULT})


def not_identity(args, prefix: str = "") -> list[str]:
    """The fields of a dataclass that do not count for these values, fields of nested dataclasses as
    `rational.form`."""
    left_out = []
    for field in dataclasses.fields(args):
        name = prefix + field.name
        value = getattr(args, field.name)
        counts = field.metadata.get("identity", "always")
        if counts not in ("always", UNLESS_DEFAULT, NEVER):
            raise ValueError(
                f"{name}: its identity is {counts!r}; give {NEVER!r} or {UNLESS_DEFAULT!r}, or none"
            )
        if counts == NEVER or (counts == UNLESS_DEFAULT and _is_default(value, field)):
            left_out.append(name)
        elif dataclasses.is_dataclass(value):
            left_out += not_identity(value, f"{name}.")
    return left_out


def _is_default(value, field: dataclasses.Field) -> bool:
    """Whether a field has its default, in the parts that count."""
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if not dataclasses.is_dataclass(value):
        return value == default
    counted = identity(dataclasses.asdict(value), not_identity(value))
    return counted == identity(dataclasses.asdict(default), not_identity(default))


def identity(config: dict, exclude: Collection[str]) -> dict:
    """The settings of `config` that belong to a run's identity. exclude: keys that do not, those of
    nested dicts as `rational.form`."""
    return dict(_kept(config, frozenset(exclude), ""))


def _kept(config: dict, exclude: frozenset[str], prefix: str) -> Iterator[tuple[str, object]]:
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name in exclude:
            continue
        if isinstance(value, dict):
            value = dict(_kept(value, exclude, f"{name}."))
        yield key, value


def canonical(config: dict, exclude: Collection[str] = ()) -> str:
    """The identity as JSON. The order of keys does not matter; tuples equal lists; 1 and 1.0
    differ."""
    return json.dumps(identity(config, exclude), sort_keys=True, separators=(",", ":"), default=str)


def config_hash(config: dict, exclude: Collection[str]) -> str:
    """Ten hex digits of a hash of the identity of `config`, nested dicts included; `exclude` as in
    `identity`."""
    return hashlib.sha256(canonical(config, exclude).encode()).hexdigest()[:10]


def run_name(env_id: str, script: str, activation: str, seed: int, digest: str) -> str:
    """Folder name `<env>__<script>__<activation>__s<seed>__<digest>`, safe on every file system.

    `*` becomes `x`, `+` becomes `p`, any other character outside `A-Za-z0-9.=_-` becomes `-`,
    repeated `_` become one, and each part is cut to 60 characters. The digest keeps names distinct;
    config.json has the exact values.

    >>> run_name("dm_control/cheetah-run-v0", "mine", "tanh*tanh", 3, "0123456789")
    'dm_control-cheetah-run-v0__mine__tanhxtanh__s3__0123456789'
    """
    parts = [_safe(part) for part in (env_id, script, activation)]
    return "__".join([*parts, f"s{int(seed)}", digest])


def short_name(env_id: str, script: str, activation: str, seed: int, digest: str) -> str:
    """The name of a run in the dashboards: shorter than its folder's name, with the activation
    first. The first word of the script's name distinguishes algorithms, six digits of the digest
    settings.

    >>> short_name("dm_control/cheetah-run-v0", "mine_continuous", "tanh*tanh", 3, "0123456789")
    'tanh*tanh cheetah-run mine s3 012345'
    """
    tasks = [re.sub(r"-v[0-9]+$", "", task) for task in env_id.split(",")]
    env = ",".join(task.rpartition("/")[2] for task in tasks)
    if len(env) > SHORT_NAME_ENV:
        env = f"{env[: SHORT_NAME_ENV - 3]}..."
    if len(activation) > SHORT_NAME_ACTIVATION:
        activation = f"{activation[: SHORT_NAME_ACTIVATION - 3]}..."
    return f"{activation} {env} {script.partition('_')[0]} s{int(seed)} {digest[:6]}"


def _safe(text: str) -> str:
    text = text.replace("*", "x").replace("+", "p")
    text = re.sub("[^A-Za-z0-9.=_-]", "-", text)
    return re.sub("_+", "_", text).strip("_")[:60]


def env_name(env_id: str | Sequence[str]) -> str:
    """One environment id unchanged, or several joined, naming a suite once where it repeats.

    >>> env_name(["metaworld/reach-v3", "metaworld/push-v3"])
    'metaworld/reach-v3,push-v3'
    """
    ids = [env_id] if isinstance(env_id, str) else list(env_id)
    names = []
    suite = ""
    for name in ids:
        names.append(name.removeprefix(f"{suite}/") if suite else name)
        suite = name.rpartition("/")[0]
    return ",".join(names)
