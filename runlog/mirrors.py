"""The mirrors of a run: TensorBoard's event files and Weights & Biases (docs/dashboards.md,
docs/runs.md).

Both mirror a run's scalars.csv, histograms.jsonl and plots. They are optional: if one of them
fails, it prints one warning on stderr and stops, and the training continues. Only at the start is a
mistake an error.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import re
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from runlog.disk import append
from runlog.meta import ENDED
from runlog.terminal import UserError, reason, warn_once
from runlog.video import as_gif

# section -> panel -> regular expressions of whole keys
Sections = dict[str, dict[str, str | tuple[str, ...]]]
HPARAMS_STATUS = {"finished": 1, "diverged": 2}  # TensorBoard's success and failure
HPARAMS_FIRST = ("activation", "env_id", "seed")  # settings in which runs differ most often

WANDB_VERSION = "wandb>=0.31,<0.32"  # as in requirements.txt
WANDB_MODES = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
# Maximum lengths on its server. Offline, they are not checked before `wandb sync`.
WANDB_LENGTHS = {"name": 128, "group": 128, "job_type": 64}
WANDB_TAG_LENGTH = 64
WANDB_FLUSH_SECONDS = 1.0  # how much of an offline run a kill may lose
WANDB_FINISH_SECONDS = 600.0  # how long a lost connection may delay the end of each run


class TensorBoard:
    """The event files of one run. Events are collected and written by `flush` in one piece.

    In addition to what is logged they contain the settings, as text and for HParams, and the layout
    of the custom scalars: the panels that have at least one key so far.
    """

    def __init__(
        self,
        folder: Path,
        sections: Sections | None = None,
        *,
        title: str = "",
        settings: dict | None = None,
        config: dict | None = None,
        suffix: str = "",
    ):
        """sections: of the custom scalars; None makes one for each prefix of the keys. title: name
        of the run in HParams. settings, config: shown by HParams and as text; nested dicts are
        allowed, None shows nothing. suffix: of the event file's name."""
        self._folder = folder
        self._sections = sections
        self._title = title or folder.name
        self._settings = settings
        self._config = config
        self._suffix = suffix
        self._path = None  # of this session's event file, created by the first flush with events
        self._works = True
        self._keys = {}  # keys of the scalars so far, in order
        self._newest_step = 0
        self._laid_out = {}  # the sections that TensorBoard has been given
        self._pending = []  # (step, wall time, function from torch's summary module to a summary)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            self._keys.setdefault(key)
            self._add(step, functools.partial(_scalar_summary, key, value))

    def image(self, step: int, key: str, path: Path) -> None:
        """The file is read immediately, since it may be overwritten."""
        if not self._works:
            return
        try:
            encoded = Path(path).read_bytes()
        except OSError as error:
            self._stop(error)
            return
        self._add(step, functools.partial(_image_summary, key, encoded))

    def video(self, step: int, key: str, path: Path) -> None:
        """TensorBoard does not play mp4 files: shows a smaller GIF among the images."""
        if not self._works:
            return
        try:
            encoded = as_gif(path)
        except Exception as error:
            problem = f"no video {path} in TensorBoard ({reason(error)})"
            warn_once("TensorBoard's video", problem)
            return
        self._add(step, functools.partial(_image_summary, key, encoded))

    def histogram(self, step: int, key: str, counts: np.ndarray, edges: np.ndarray) -> None:
        self._add(step, functools.partial(_histogram_summary, key, counts, edges))

    def flush(self, purge_step: int) -> None:
        """Writes what was added since the last flush.

        purge_step: hides events of earlier sessions from this step on; used at the first flush
        only.
        """
        if not self._pending:
            return
        try:
            self._write(purge_step)
        except Exception as error:
            self._stop(error)
        self._pending.clear()

    def close(self, status: str) -> None:
        """Tells HParams how the run has ended; no file is open between two flushes."""
        if self._settings is None or self._path is None or status not in HPARAMS_STATUS:
            return
        end = functools.partial(_end_summary, HPARAMS_STATUS[status])
        self._add(self._newest_step, end)
        self.flush(0)

    def _add(self, step: int, summarise: Callable) -> None:
        if self._works:
            self._pending.append((step, time.time(), summarise))

    def _filled_sections(self) -> Sections:
        """The panels that have a key; without sections one panel for each key, grouped by
        prefix."""
        filled = {}
        if self._sections is None:
            for key in self._keys:
                prefix, _, name = key.partition("/")
                filled.setdefault(prefix, {})[name or prefix] = re.escape(key)
            return filled
        for section, panels in self._sections.items():
            shown = {}
            for title, patterns in panels.items():
                pattern = re.compile(as_one_pattern(patterns))
                if any(pattern.fullmatch(key) for key in self._keys):
                    shown[title] = patterns
            if shown:
                filled[section] = shown
        return filled

    def _stop(self, error: Exception) -> None:
        self._works = False
        self._pending.clear()
        warn_once(
            "TensorBoard",
            f"no more TensorBoard events of {self._folder} ({reason(error)}); "
            "scalars.csv is still written",
        )

    def _write(self, purge_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard import summary

        content = io.BytesIO()
        records = RecordWriter(content)

        def write(**fields) -> None:
            records.write(Event(**fields).SerializeToString())

        path = self._path
        if path is None:
            path = _event_path(self._folder, self._suffix)
            start = SessionLog(status=SessionLog.START)
            write(wall_time=time.time(), file_version="brain.Event:2")
            write(wall_time=time.time(), step=purge_step, session_log=start)
            for made in self._settings_summaries(summary):
                write(wall_time=time.time(), step=purge_step, summary=made)
            self._newest_step = purge_step
            self._keys = dict.fromkeys(_logged_keys(self._folder)) | self._keys
        self._newest_step = max([self._newest_step, *[step for step, _, _ in self._pending]])
        filled = self._filled_sections()
        if filled != self._laid_out:
            # a later layout replaces an earlier one
            made = summary.custom_scalars(_layout(filled))
            write(wall_time=time.time(), step=self._newest_step, summary=made)
        for step, wall_time, summarise in self._pending:
            write(wall_time=wall_time, step=step, summary=summarise(summary))
        append(path, content.getbuffer())
        self._path = path
        self._laid_out = filled

    def _settings_summaries(self, summary) -> list:
        """The settings: all of them as text, those in the identity for HParams."""
        from tensorboard.plugins.hparams import summary_v2 as hparams

        made = []
        if self._config is not None:
            first = self._settings or {}
            made.append(summary.text("settings", settings_table({**first, **self._config})))
        if self._settings is not None:
            settings = flattened(self._settings)
            layout = _hparams_layout(settings, self._final_metrics())
            made.append(_hparams_summary("EXPERIMENT_TAG", experiment=layout))
            made.append(hparams.hparams_pb(settings, trial_id=self._title))
        return made

    def _final_metrics(self) -> list[str]:
        """The plain keys of the first section, which HParams shows for a run."""
        for panels in (self._sections or {}).values():
            keys = []
            for patterns in panels.values():
                parts = (patterns,) if isinstance(patterns, str) else patterns
                keys += [part for part in parts if re.fullmatch("[A-Za-z0-9_/]+", part)]
            return keys
        return []


def _event_path(folder: Path, suffix: str) -> Path:
    """TensorBoard reads a folder's files in the order of their names: seconds, then a number."""
    number = len(list(folder.glob("events.out.tfevents.*")))
    order = f"{int(time.time()):010d}.{number:04d}"
    return folder / f"events.out.tfevents.{order}.{socket.gethostname()}.{os.getpid()}{suffix}"


def _logged_keys(folder: Path) -> list[str]:
    """The keys that a run has logged in earlier sessions, in order."""
    keys = {}
    for name in ("scalars.csv", "perf.csv"):
        with contextlib.suppress(OSError), open(folder / name, "rb") as file:
            next(file, None)
            for line in file:
                fields = line.decode(errors="replace").split(",")
                if len(fields) == 4:
                    keys.setdefault(fields[1])
    return list(keys)


def as_one_pattern(patterns: str | tuple[str, ...]) -> str:
    """Combines several regular expressions of keys into one."""
    return patterns if isinstance(patterns, str) else "|".join(patterns)


def flattened(settings: dict, prefix: str = "") -> dict[str, bool | float | str]:
    """Nested settings as one level, such as `rational.form`; values other than numbers, bools and
    text become JSON.

    >>> flattened({"a": 1, "rational": {"degrees": [3, 2]}})
    {'a': 1, 'rational.degrees': '[3, 2]'}
    """
    flat = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= flattened(value, f"{prefix}{key}.")
        elif isinstance(value, bool | int | float | str):
            flat[f"{prefix}{key}"] = value
        else:
            flat[f"{prefix}{key}"] = json.dumps(value, default=str)
    return flat


def settings_table(config: dict) -> str:
    """All settings as a table in Markdown."""
    lines = ["| setting | value |", "|---|---|"]
    for key, value in flattened(config).items():
        text = str(value).replace("|", "\\|")
        lines.append(f"| {key} | `{text}` |")
    return "\n".join(lines)


def _hparams_layout(settings: dict, metrics: Sequence[str]):
    """The columns of HParams, in the format of the plugin: all settings, and these keys.
    TensorBoard takes the columns of the first run that it finds, so HPARAMS_FIRST come first in
    every run."""
    from tensorboard.plugins.hparams import api_pb2

    infos = []
    for key, value in settings.items():
        kind = "STRING" if isinstance(value, str) else "FLOAT64"
        if isinstance(value, bool):
            kind = "BOOL"
        info = api_pb2.HParamInfo(name=key, type=f"DATA_TYPE_{kind}")
        info.differs = key in HPARAMS_FIRST
        infos.append(info)
    found = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=key)) for key in metrics]
    return api_pb2.Experiment(hparam_infos=infos, metric_infos=found)


def _hparams_summary(tag: str, **content):
    """A summary of TensorBoard's HParams, whose content is metadata."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    data = plugin_data_pb2.HParamsPluginData(**content)
    described = metadata.create_summary_metadata(data)
    value = Summary.Value(
        tag=getattr(metadata, tag), metadata=described, tensor=metadata.NULL_TENSOR
    )
    return Summary(value=[value])


def _end_summary(status: int, summary):
    from tensorboard.plugins.hparams import plugin_data_pb2

    end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
    return _hparams_summary("SESSION_END_INFO_TAG", session_end_info=end)


def _layout(sections: dict) -> dict:
    """Sections in the format of the custom scalars."""
    layout = {}
    for section, panels in sections.items():
        charts = {}
        for title, patterns in panels.items():
            charts[title] = ["Multiline", [f"^({as_one_pattern(patterns)})$"]]
        layout[section] = charts
    return layout


def _scalar_summary(key: str, value: float, summary):
    return summary.scalar(key, value)


def _image_summary(key: str, encoded: bytes, summary):
    from PIL import Image

    image = Image.open(io.BytesIO(encoded))
    shown = summary.Summary.Image(
        height=image.height,
        width=image.width,
        colorspace=len(image.getbands()),
        encoded_image_string=encoded,
    )
    return summary.Summary(value=[summary.Summary.Value(tag=key, image=shown)])


def _histogram_summary(key: str, counts: np.ndarray, edges: np.ndarray, summary):
    middles = (edges[1:] + edges[:-1]) / 2
    total = counts.sum()
    first_moment = counts @ middles
    second_moment = counts @ middles**2
    numbers = (edges[0], edges[-1], total, first_moment, second_moment)
    return summary.histogram_raw(
        key, *numbers, bucket_limits=edges[1:].tolist(), bucket_counts=counts.tolist()
    )


class Wandb:
    """One run's mirror in Weights & Biases; created by `start_wandb`."""

    def __init__(self, run):
        self._run = run  # None once it has failed

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._log(step, lambda wandb: values)

    def image(self, step: int, key: str, path: Path) -> None:
        self._log(step, lambda wandb: {key: wandb.Image(str(path))})

    def video(self, step: int, key: str, path: Path) -> None:
        self._log(step, lambda wandb: {key: wandb.Video(str(path), format="mp4")})

    def histogram(self, step: int, key: str, counts: np.ndarray, edges: np.ndarray) -> None:
        self._log(step, lambda wandb: {key: wandb.Histogram(np_histogram=(counts, edges))})

    def flush(self, purge_step: int) -> None:
        """W&B writes on its own, every WANDB_FLUSH_SECONDS."""

    def close(self, status: str) -> None:
        """Sends the rest; an interrupted or failed run ends with another exit code."""
        if self._run is None:
            return
        try:
            self._run.finish(exit_code=0 if status in ENDED else 1)
        except Exception as error:
            self._stop(error)
        self._run = None

    def _log(self, step: int, make: Callable) -> None:
        if self._run is None:
            return
        import wandb

        try:
            values = make(wandb)
        except Exception as error:
            warn_once("W&B's value", f"W&B rejects a value of step {step} ({reason(error)})")
            return
        try:
            self._run.log({**values, "global_step": step}, step=step)
        except Exception as error:
            self._stop(error)

    def _stop(self, error: Exception) -> None:
        self._run = None
        problem = f"W&B has failed ({reason(error)})"
        warn_once("W&B", f"{problem}; continuing without it, scalars.csv has every value")
        import wandb

        try:  # otherwise its exit hook fails with a traceback
            wandb.teardown()
        except (Exception, SystemExit):
            return


def shortened(text: str, limit: int) -> str:
    """`text` with at most `limit` characters; a longer text keeps its beginning and ends with a
    digest of the whole."""
    if len(text) <= limit:
        return text
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:10]
    return f"{text[: limit - 11]}-{digest}"


def check_wandb(project: str | None = None, mode: str | None = None) -> str:
    """W&B's mode here: "online", "offline" or "disabled", from `mode`, WANDB_MODE or the file that
    `wandb offline` and `wandb disabled` write, in this order.

    Raises UserError if wandb is missing or has another version, if its settings or the project's
    name are wrong, or if it is online and not logged in or not reachable.
    """
    install = f"`pip install '{WANDB_VERSION}'`"
    try:
        import wandb
        from wandb.sdk import wandb_setup
    except Exception as error:
        raise UserError(f"--track: cannot import wandb ({reason(error)}); {install}") from error
    version = tuple(int(part) for part in wandb.__version__.split(".")[:2] if part.isdigit())
    if version < (0, 31):
        raise UserError(f"--track: wandb {wandb.__version__} is too old; {install}")
    asked = os.environ.get("WANDB_MODE")
    if asked and asked not in WANDB_MODES:
        remedy = "use online, offline or disabled, or unset it"
        raise UserError(f"WANDB_MODE={asked}: unknown; {remedy}")
    try:
        filed = wandb_setup.singleton().settings.read_system_settings().all().get("mode")
    except Exception as error:
        problem = f"--track: a WANDB_ variable is wrong ({_wandb_reason(error)})"
        raise UserError(f"{problem}; correct or unset it") from None
    try:
        wandb.Settings(project=project)
    except Exception as error:
        raise UserError(f"--wandb-project {project}: {_wandb_reason(error)}") from None
    # wandb warns about a wrong mode in the file
    mode = WANDB_MODES.get(mode or asked or filed, "online")
    if mode == "online":
        _log_in()
    return mode


def _wandb_reason(error: Exception) -> str:
    """The reason of a validation error, which has a line for the setting, one for the reason, and
    then the input, which may be long."""
    lines = [line.strip() for line in str(error).splitlines() if "errors.pydantic.dev" not in line]
    return ": ".join(lines[-2:]).partition(" [type=")[0][:300]


@functools.cache  # a login lasts for the process; a failure raises, which is not cached
def _log_in() -> None:
    """Raises UserError unless the W&B server accepts a stored key. Never asks on the terminal."""
    import wandb

    remedy = "log in with `wandb login`, or set WANDB_MODE=offline and use `wandb sync` later"
    try:
        logged_in = wandb.login(prompt=False)
    except Exception as error:
        problem = f"--track: W&B refuses the login ({str(error).strip()[:200]!r})"
        raise UserError(f"{problem}; {remedy}") from None
    if not logged_in:
        raise UserError(f"--track: W&B is not logged in; {remedy}")


def start_wandb(
    kwargs: dict, digest: str, name: str, folder: Path, config: dict, fresh: bool
) -> Wandb | None:
    """A W&B run with the id `digest`, which is continued if it exists (unless fresh); None where
    W&B is disabled.

    kwargs: project, entity, group, tags, mode, ... of `wandb.init`. Raises UserError like
    check_wandb, and if W&B does not start.
    """
    mode = check_wandb(kwargs.get("project"), kwargs.get("mode"))
    if mode == "disabled":
        cause = "WANDB_MODE, or `wandb disabled`"
        warn_once("disabled", f"--track does nothing: W&B is disabled here ({cause})")
        return None
    import wandb
    from wandb.sdk import wandb_setup

    options = {
        "console": "off",
        "init_timeout": 60,
        "x_transaction_log_flush_interval": WANDB_FLUSH_SECONDS,
    }
    if not wandb_setup.singleton().settings.finish_timeout:  # the user has set none
        options["finish_timeout"] = WANDB_FINISH_SECONDS
    own = {"id": digest, "name": name, "dir": str(folder), "config": config, "mode": mode}
    # A fresh run replaces the one with this id; resuming that one would drop its early steps.
    own["resume"] = None if fresh else "allow"
    given = {**kwargs, **own}
    for key, limit in WANDB_LENGTHS.items():
        if given.get(key):
            given[key] = shortened(given[key], limit)
    if given.get("tags"):
        given["tags"] = [shortened(tag, WANDB_TAG_LENGTH) for tag in given["tags"]]
    known = {key: value for key, value in options.items() if key in wandb.Settings.model_fields}
    try:
        settings = wandb.Settings(**known)
        # create_new: a process may have several runs
        run = wandb.init(**given, reinit="create_new", settings=settings)
        run.define_metric("*", step_metric="global_step")
    except Exception as error:
        remedy = "set WANDB_MODE=offline and use `wandb sync` later, or leave --track out"
        problem = f"--track: W&B does not start ({str(error).strip()[:200]!r})"
        raise UserError(f"{problem}; {remedy}") from error
    return Wandb(run)
