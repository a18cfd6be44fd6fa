"""The graphics backend that MuJoCo renders with (docs/environments.md). Only videos need it:
nothing is loaded or tried before one is made."""

import contextlib
import functools
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import runlog

OFF = ("disable", "disabled", "off", "false", "0")
SYNONYMS = {"enable": "", "enabled": "", "on": "", "true": "", "1": ""}
SYNONYMS |= {"glx": "glfw", "wgl": "glfw", "cgl": "glfw"}
VARIABLES = ("MUJOCO_GL", "PYOPENGL_PLATFORM")
PROBE_SECONDS = 60
# Opens a context and passes it to MuJoCo; ends with os._exit, since some drivers crash or complain
# during a normal exit.
PROBE = """
import os
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco/>")
context = mujoco.GLContext(16, 16)
context.make_current()
mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
os._exit(0)
"""


class NoGraphics(RuntimeError):
    """No backend can render here; the text says what was tried."""


@contextlib.contextmanager
def no_graphics() -> Iterator[None]:
    """Used while dm_control and mujoco are imported: neither loads a graphics library, whatever
    MUJOCO_GL says. A missing or broken driver, or a wrong value of MUJOCO_GL, would otherwise make
    the import fail."""
    before = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = "disable"
    try:
        yield
    finally:
        _set("MUJOCO_GL", before)


def _set(variable: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(variable, None)
    else:
        os.environ[variable] = value


def settings(backend: str) -> dict[str, str | None]:
    """The environment variables with which mujoco, dm_control and gymnasium render with `backend`;
    None: unset."""
    platform = backend if backend in ("egl", "osmesa") else None
    return {"MUJOCO_GL": backend, "PYOPENGL_PLATFORM": platform}


def candidates() -> list[str]:
    """Backends in the order in which they are tried: that of the window system where there is a
    display, then EGL (a GPU, or Mesa in software), then OSMesa. Only Linux has more than one."""
    if not sys.platform.startswith("linux"):
        return ["glfw"]
    has_display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return ["glfw", "egl", "osmesa"] if has_display else ["egl", "osmesa"]


def reason_against(backend: str) -> str | None:
    """None if a separate process can render with `backend`, otherwise the reason. A driver may
    crash or hang, so it is not tried in this process."""
    environment = dict(os.environ)
    for variable, value in settings(backend).items():
        environment.pop(variable, None)
        if value is not None:
            environment[variable] = value
    command = [sys.executable, "-c", PROBE]
    options = {"env": environment, "capture_output": True, "text": True}
    try:
        done = subprocess.run(command, timeout=PROBE_SECONDS, **options)
    except subprocess.TimeoutExpired:
        return f"no answer in {PROBE_SECONDS} s"
    except OSError as error:
        return str(error)
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}"
    if done.returncode > 0:
        for line in done.stderr.splitlines():
            if re.match(r"[\w.]*(Error|Exception)\b", line):
                return line
        return f"exit code {done.returncode}"
    return None


@functools.cache
def _choose(wanted: str) -> tuple[str | None, str]:
    """(backend that works or None, why the others do not). wanted: MUJOCO_GL in lower case, or
    ""."""
    failures = []
    names = candidates()
    if wanted:
        names = [wanted, *(name for name in names if name != wanted)]
    for name in names:
        reason = reason_against(name)
        if reason is None:
            return name, "; ".join(failures)
        failures.append(f"{name}: {reason}")
    return None, "; ".join(failures)


def enable_graphics() -> str:
    """Enables rendering by MuJoCo in this process; returns the backend. MUJOCO_GL is used if it
    works, otherwise another backend with a warning. The first call tries them in separate processes
    (about a second each). Raises NoGraphics."""
    wanted = os.environ.get("MUJOCO_GL", "").lower().strip()
    wanted = SYNONYMS.get(wanted, wanted)
    if wanted in OFF:
        raise NoGraphics(f"MUJOCO_GL={wanted} turns graphics off; unset it")
    backend, failures = _choose(wanted)
    if backend is None:
        remedy = "install Mesa's EGL (libegl1) or OSMesa (libosmesa6)"
        raise NoGraphics(f"no graphics here: {failures}; {remedy}")
    if wanted and backend != wanted:
        used = f"so videos are drawn with {backend} ({failures})"
        runlog.warn(f"MUJOCO_GL={wanted} does not work here, {used}")
    for variable, value in settings(backend).items():
        _set(variable, value)
    # What was imported under no_graphics reads MUJOCO_GL again.
    renderers = sys.modules.get("dm_control._render")
    if renderers is not None and renderers.BACKEND in OFF:
        importlib.reload(renderers)
    contexts = sys.modules.get("mujoco.gl_context")
    if contexts is not None and not hasattr(contexts, "GLContext"):
        importlib.reload(contexts)
    return backend
