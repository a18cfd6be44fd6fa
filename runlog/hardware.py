"""The machine: its description for meta.json, its devices, and how glibc allocates memory."""

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from runlog.terminal import UserError

PACKAGES = ("torch", "numpy", "scipy", "gymnasium", "mujoco", "dm_control", "metaworld")
PACKAGES += ("shimmy", "ale-py", "wandb")  # whose versions are in meta.json
ROOT = Path(__file__).resolve().parent.parent


def find_device(name: str) -> torch.device:
    """The device of `--device name`; "auto" is cuda if available. Raises UserError if there is no
    such device.

    A numbered GPU (cuda:1) becomes the current one, to which streams, CUDA graphs and the peak
    memory in meta.json refer.
    """
    chosen = name
    if name == "auto":
        chosen = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(chosen)
    except RuntimeError:  # its message lists the twenty kinds of devices that torch knows
        remedy = "use cpu or auto, or with a GPU cuda or cuda:1"
        raise UserError(f"--device {name}: is not a device; {remedy}") from None
    try:
        torch.empty(1, device=device).cpu()
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError, ImportError) as error:
        first_sentence = str(error).splitlines()[0].split(". ")[0]
        problem = f"--device {name}: not on this machine ({first_sentence})"
        raise UserError(f"{problem}; use cpu or auto") from None
    return device


def machine() -> dict:
    """Command line, git commit, versions and hardware, in the form of meta.json."""
    return {"argv": sys.argv, **_code_and_hardware()}


@functools.cache  # the code of a process does not change; git takes 30 ms
def _code_and_hardware() -> dict:
    hardware = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
    }
    return {
        "git": _git(),
        "untracked_code": _untracked_code(),
        "versions": _versions(),
        "hardware": hardware,
    }


def _output_of_git(*words: str) -> str | None:
    """None if git fails, as outside a repository, or is not installed."""
    with contextlib.suppress(OSError):
        done = subprocess.run(["git", *words], capture_output=True, text=True, cwd=ROOT)
        if done.returncode == 0:
            return done.stdout
    return None


def _git() -> dict:
    """The commit, None outside a repository, and whether tracked files differ from it."""
    commit = _output_of_git("rev-parse", "--verify", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None}
    # `git describe --dirty` would lock the index, and a run killed meanwhile would leave the lock
    words = ("--no-optional-locks", "status", "--porcelain", "--untracked-files=no")
    changes = _output_of_git(*words)
    return {"commit": commit.strip(), "dirty": None if changes is None else bool(changes)}


def _untracked_code() -> dict[str, str]:
    """path -> SHA-256 of the code of this process that git does not track: the script that was
    started, if any, and imported modules from its folder, the current folder and this project's,
    such as a custom activation or environment. Without git only the script."""
    listed = (_output_of_git("ls-files", "-z") or "").split("\0")
    tracked = {str(ROOT / name) for name in listed}
    files = []
    folders = [os.getcwd(), str(ROOT)]
    script = os.path.abspath(sys.argv[0])
    if os.path.isfile(script) and not _is_installed(script):  # python -c has none
        files.append(script)
        folders.append(os.path.dirname(script))
    if len(listed) > 1:
        files += _modules_in(folders)
    found = {}
    for file in sorted({os.path.realpath(file) for file in files} - tracked):
        with contextlib.suppress(OSError):
            found[os.path.relpath(file)] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return found


def _modules_in(folders: Sequence[str]) -> list[str]:
    """The files of imported modules in these folders."""
    below = tuple(os.path.join(folder, "") for folder in folders)
    files = []
    for module in list(sys.modules.values()):
        file = str(getattr(module, "__file__", None))
        if file.startswith(below) and file.endswith(".py") and not _is_installed(file):
            files.append(file)
    return files


def _is_installed(file: str) -> bool:
    """Whether a file belongs to Python itself or to an installed package."""
    places = (os.path.join(sys.prefix, ""), os.path.join(sys.base_prefix, ""))
    return file.startswith(places) or "site-packages" in file


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _cpu() -> str:
    with contextlib.suppress(OSError, AttributeError):
        text = Path("/proc/cpuinfo").read_text()
        return re.search(r"model name\s*:\s*(.+)", text).group(1)
    return platform.machine()


def keep_freed_memory() -> None:
    """Tells glibc to keep freed buffers of up to 32 MB for reuse. By default many are returned to
    the kernel, and the page faults of the next ones take a tenth to a fifth of an Atari update on
    the CPU (docs/log.md). Elsewhere: no-op."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        trim_threshold = -1  # M_TRIM_THRESHOLD of malloc.h
        mmap_threshold = -3  # M_MMAP_THRESHOLD
        libc.mallopt(mmap_threshold, 32 * 2**20)  # the largest possible value
        libc.mallopt(trim_threshold, 2**31 - 1)
