"""What torch.compile needs of the machine: a compiler, Python's headers, a folder for what it
compiles."""

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
    """Calls `say` when torch.compile begins for the first time from now on, before its wait. None:
    calls nobody."""
    _say_compiling[:] = [] if say is None else [say]
    if "torch._dynamo" not in sys.modules:  # nothing is to be compiled, and it takes a second
        return
    callbacks = torch._dynamo.callback.callback_handler
    if _compilation_begins not in callbacks.start_callbacks:
        callbacks.register_start_callback(_compilation_begins)


def _compilation_begins(_) -> None:
    say_compiling()


def say_compiling() -> None:
    """A compilation begins: calls whoever waits for the first one (`when_compiling`)."""
    while _say_compiling:
        _say_compiling.pop()()
    wait_for_probe()  # what it finds, the compilation need not find again


def probe_early(device: torch.device) -> None:
    """Begins to find out which vector instructions work here, in a thread of its own; only once in
    a process.

    torch.compile tries each kind in a new process before it compiles for the CPU, or looks up what
    it has compiled: two seconds of waiting, in which environments can be made and take random
    steps. Nothing may be forked meanwhile: a forked process would keep a pipe open on whose end the
    thread waits.
    """
    if device.type != "cpu" or os.environ.get("TORCHDYNAMO_DISABLE") == "1" or _probes:
        return
    # A compilation imports both in any case. Imported in the thread, they could clash with what the
    # main thread imports meanwhile.
    from torch._inductor import codecache, cpu_vec_isa  # noqa: F401

    def probe() -> None:
        with contextlib.suppress(Exception):  # the compilation meets it again, and tells
            cpu_vec_isa.pick_vec_isa()  # torch keeps the answer

    thread = threading.Thread(target=probe, name="vector instructions", daemon=True)
    _probes.append(thread)
    thread.start()


def wait_for_probe() -> None:
    """Returns once the thread of `probe_early`, if there is one, has ended."""
    for thread in _probes:
        thread.join()


def check_compiler(device: torch.device) -> None:
    """For a run with --compile: raises UserError, with what to install, unless this machine can
    compile.

    On the CPU torch.compile writes C++ (compiler: $CXX, else g++ or clang++), on CUDA Triton builds
    a C module ($CC, else gcc or clang). Either takes 0.3 s. Also finds a
    folder for compiled code.
    """
    if os.environ.get("TORCHDYNAMO_DISABLE") == "1":  # torch's own switch: nothing is compiled
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
        raise UserError(_told(f"no working {language.upper()} compiler ({names})", variable))
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
        raise UserError(_told(problem, variable))


def _told(problem: str, variable: str) -> str:
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
    """Point torch.compile to a temporary folder, deleted at the end, unless its own can be written.
    Its modules make theirs when they are imported, so this comes before."""
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
    """Where torch.compile keeps what it has compiled, unless told otherwise."""
    try:
        user = getpass.getuser()
    except (KeyError, ModuleNotFoundError, OSError):  # a container whose user has no name
        user = f"uid_{os.getuid()}"
    return os.path.join(
        tempfile.gettempdir(), "torchinductor_" + re.sub(r'[\\/:*?"<>|]', "_", user)
    )
