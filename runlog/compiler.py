"""What torch.compile needs on a machine: a compiler, Python's headers, a folder for compiled
code."""

import atexit
import contextlib
import getpass
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable

import torch

from runlog.terminal import UserError, reason, warn_once

INSTALL = (
    "`apt install g++ python3-dev`, `conda install cxx-compiler` or, on macOS, "
    "`xcode-select --install`"
)


_say_compiling: list[Callable[[], None]] = []  # at most one
_probes: list[threading.Thread] = []  # at most one: it tries vector instructions


def when_compiling(say: Callable[[], None] | None) -> None:
    """Calls `say` when torch.compile next starts compiling, before the wait. None: calls
    nothing."""
    _say_compiling[:] = [] if say is None else [say]
    if "torch._dynamo" not in sys.modules:  # nothing to compile, and the import takes a second
        return
    callbacks = torch._dynamo.callback.callback_handler
    if _compilation_begins not in callbacks.start_callbacks:
        callbacks.register_start_callback(_compilation_begins)


def _compilation_begins(_) -> None:
    say_compiling()


def say_compiling() -> None:
    """A compilation starts: calls the function registered with `when_compiling`."""
    while _say_compiling:
        _say_compiling.pop()()
    wait_for_probe()  # so that the compilation reuses its result


def probe_early(device: torch.device) -> None:
    """Starts to find out, in a separate thread, which vector instructions work here; only once per
    process.

    torch.compile tries each kind in a new process before it compiles for the CPU or looks up
    compiled code: two seconds of waiting, during which environments can be created and take random
    steps. No process may be forked meanwhile: it would keep a pipe open whose end the thread waits
    for.
    """
    if device.type != "cpu" or os.environ.get("TORCHDYNAMO_DISABLE") == "1" or _probes:
        return
    # A compilation imports both in any case. Importing them in the thread could clash with imports
    # of the main thread.
    from torch._inductor import codecache, cpu_vec_isa  # noqa: F401

    def probe() -> None:
        with contextlib.suppress(Exception):  # the compilation meets the same error and reports it
            cpu_vec_isa.pick_vec_isa()  # torch caches the answer

    thread = threading.Thread(target=probe, name="vector instructions", daemon=True)
    _probes.append(thread)
    thread.start()


def wait_for_probe() -> None:
    """Returns once the thread of `probe_early`, if any, has ended."""
    for thread in _probes:
        thread.join()


def check_compiler(device: torch.device) -> None:
    """For a run with --compile: raises UserError, with what to install, unless this machine can
    compile.

    On the CPU torch.compile writes C++ (compiler: $CXX, else g++ or clang++); on CUDA Triton builds
    a C module ($CC, else gcc or clang). Either check takes 0.3 s. Also finds a folder for compiled
    code.
    """
    if os.environ.get("TORCHDYNAMO_DISABLE") == "1":  # torch's switch: nothing is compiled
        return
    _find_cache()
    if device.type == "cuda":
        candidates = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang", "cc"]
        compiler = next((name for name in candidates if shutil.which(name)), None)
        language = "c"
        variable = "CC"
    else:
        candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
        compiler = _inductors_compiler()
        language = "c++"
        variable = "CXX"
    if compiler is None:
        names = " or ".join(candidates)
        raise UserError(_message(f"no working {language.upper()} compiler ({names})", variable))
    include = sysconfig.get_path("include")
    command = [compiler, "-fsyntax-only", "-I", include, "-x", language, "-"]
    try:
        program = "#include <Python.h>\n"
        done = subprocess.run(command, input=program, capture_output=True, text=True)
        complaint = done.stderr if done.returncode else ""
    except OSError as error:
        complaint = str(error)
    if complaint:
        errors = [line for line in complaint.splitlines() if "error" in line.lower()]
        complaint_line = (errors or [complaint])[0].strip()[:200]
        problem = f"{compiler} cannot compile a file with Python.h ({complaint_line})"
        raise UserError(_message(problem, variable))


def _message(problem: str, variable: str) -> str:
    remedy = f"use --no-compile, install one ({INSTALL}), or set {variable} to one that works"
    return f"--compile: {problem}; {remedy}"


def _inductors_compiler() -> str | None:
    """The C++ compiler that torch.compile will call."""
    from torch._inductor import cpp_builder

    try:
        return cpp_builder.get_cpp_compiler()
    except Exception:  # torch's own type, or a permission
        return None


def _find_cache() -> None:
    """Points torch.compile to a temporary folder, deleted at exit, unless its own folder is
    writable. torch's modules create theirs on import, so this must come first."""
    try:
        cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or _default_cache()
        os.makedirs(cache, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            return
    except OSError as error:
        problem = reason(error)
    try:
        folder = tempfile.mkdtemp(prefix="torchinductor_")
    except OSError as error:
        raise UserError(
            f"--compile: no writable folder for compiled code ({problem}; {reason(error)}); "
            "set TORCHINDUCTOR_CACHE_DIR to one, or use --no-compile"
        ) from None
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    warn_once(
        "cache",
        f"torch.compile cannot keep compiled code ({problem}); using {folder} for this process",
    )


def _default_cache() -> str:
    """Where torch.compile stores compiled code by default."""
    try:
        user = getpass.getuser()
    except (KeyError, ModuleNotFoundError, OSError):  # a container user without a name
        user = f"uid_{os.getuid()}"
    return os.path.join(
        tempfile.gettempdir(), "torchinductor_" + re.sub(r'[\\/:*?"<>|]', "_", user)
    )
