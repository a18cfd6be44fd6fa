"""The machine: what it is, for meta.json; its devices; how glibc allocates."""

import contextlib
import ctypes
import functools
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch

from runlog.terminal import UserError

PACKAGES = ("torch", "numpy", "scipy", "gymnasium", "mujoco", "dm_control", "metaworld")
PACKAGES += ("shimmy", "ale-py", "wandb")  # of which meta.json tells the versions


def find_device(name: str) -> torch.device:
    """The device of `--device name`; "auto" is cuda where there is one. Raises UserError without
    such a device.

    A GPU with a number (cuda:1) becomes the current one, which streams, CUDA graphs and meta.json's
    peak memory are of.
    """
    chosen = name
    if name == "auto":
        chosen = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(chosen)
    except RuntimeError:  # lists the twenty kinds of devices that torch knows
        remedy = "use cpu or auto, or with a GPU cuda or cuda:1"
        raise UserError(f"--device {name}: is no device; {remedy}") from None
    try:
        torch.empty(1, device=device).cpu()
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        first_sentence = str(error).splitlines()[0].split(". ")[0]
        told = f"--device {name}: not on this machine ({first_sentence})"
        raise UserError(f"{told}; use cpu or auto") from None
    return device


def machine() -> dict:
    """Command line, git commit, versions and hardware, as meta.json has them."""
    return {"argv": sys.argv, **_code_and_hardware()}


@functools.cache  # a process runs the code that it has loaded; git takes 30 ms
def _code_and_hardware() -> dict:
    hardware = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
    }
    return {"git": _git(), "versions": _versions(), "hardware": hardware}


def _git() -> dict:
    """The commit, None outside a repository, and whether files differ from it."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    described = ""
    with contextlib.suppress(OSError):
        root = Path(__file__).parent.parent
        done = subprocess.run(command, capture_output=True, text=True, cwd=root)
        described = done.stdout.strip()
    if not described:
        return {"commit": None, "dirty": None}
    return {"commit": described.removesuffix("-dirty"), "dirty": described.endswith("-dirty")}


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
    """Tells glibc to keep freed buffers of up to 32 MB for the next ones. By default many go back
    to the kernel, and page faults of the next take a tenth to a fifth of an Atari update on the CPU
    (docs/log.md). Elsewhere: no-op."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        trim_threshold = -1  # M_TRIM_THRESHOLD of malloc.h
        mmap_threshold = -3  # M_MMAP_THRESHOLD
        libc.mallopt(mmap_threshold, 32 * 2**20)  # the greatest that there is
        libc.mallopt(trim_threshold, 2**31 - 1)
