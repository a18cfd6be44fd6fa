"""Whether the big tensors of a run fit into the memory that is there."""

import contextlib
import math
import os
import re
from pathlib import Path

import torch

from runlog.cli import flag_name
from runlog.terminal import UserError

FLOAT_BYTES = 4
ADAM_COPIES = 4  # of each trained number: itself, its gradient, and Adam's two moments
NTK_COPIES = 2  # of each sample's gradient: itself, and one while the products are formed


def available_memory(device: torch.device) -> int | None:
    """Bytes that this process can still have: of the GPU, or of the machine within the limits of its control groups
    (containers, Slurm); without these the whole memory. None where no system call tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = []
    with contextlib.suppress(OSError, AttributeError):
        text = Path("/proc/meminfo").read_text()
        found.append(1024 * int(re.search(r"MemAvailable:\s+(\d+)", text).group(1)))
    with contextlib.suppress(OSError):
        found += _left_in_control_groups(
            Path("/proc/self/cgroup").read_text(), Path("/sys/fs/cgroup")
        )
    if not found:
        with contextlib.suppress(OSError, ValueError):
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)


def _left_in_control_groups(groups: str, root: Path) -> list[int]:
    """What each memory limit leaves: of the groups in /proc/self/cgroup (version 2 and 1) and those around them.
    Cached files that nobody uses count as free."""
    left = []
    for line in groups.splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            top = root
            limit = "memory.max"
            usage = "memory.current"
            cache = "inactive_file"
        elif "memory" in controllers.split(","):
            top = root / "memory"
            limit = "memory.limit_in_bytes"
            usage = "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        folder = top / group.lstrip("/")
        while folder.is_relative_to(top):
            with contextlib.suppress(OSError, ValueError):  # ValueError: the limit is "max"
                statistics = dict(
                    row.split() for row in (folder / "memory.stat").read_text().splitlines()
                )
                used = int((folder / usage).read_text()) - int(statistics.get(cache, 0))
                left.append(max(int((folder / limit).read_text()) - used, 0))
            folder = folder.parent
    return left


def bytes_text(number: float) -> str:
    """2_500_000_000 -> "2.5 GB"; powers of 1000."""
    units = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
    power = min(int(math.log(max(number, 1), 1000) + 1e-9), len(units) - 1)
    return f"{number / 1000**power:.3g} {units[power]}"


def _value_text(value) -> str:
    return " ".join(str(x) for x in value) if isinstance(value, tuple) else str(value)


def _over_default(args, field: str) -> float:
    """How many times its default a flag is."""
    value, default = getattr(args, field), getattr(type(args)(), field)
    if isinstance(value, tuple):
        value, default = math.prod(value), math.prod(default)
    return value / max(default, 1)


def check_memory(
    args, device: torch.device, needs: dict[str, int], on_host: dict[str, int] | None = None
) -> None:
    """Raises UserError, which names the flag to lower, if the big tensors of a run do not fit into the memory that is
    available. needs: fields that a part's size depends on, parted by spaces -> bytes on `device`, of all seeds;
    on_host: the same of what is in the machine's memory wherever the network is."""
    places = {device: dict(needs)}
    host = torch.device("cpu")
    for fields, size in (on_host or {}).items():
        parts = places.setdefault(device if device.type == "cpu" else host, {})
        parts[fields] = parts.get(fields, 0) + size
    for place, parts in places.items():
        total, available = sum(parts.values()), available_memory(place)
        if available is None or total <= available:
            continue
        largest = max(parts, key=parts.get)
        field = max(largest.split(), key=lambda name: _over_default(args, name))
        value = _value_text(getattr(args, field))
        where = f"memory of {place}" if place.type == "cuda" else "memory"
        told = f"the run would need about {bytes_text(total)} of {where}, {bytes_text(available)} are available"
        others = [
            flag_name(name)
            for name in largest.split()
            if name != field and _over_default(args, name) > 1
        ]
        alternatives = f" (or {', '.join(others)})" if others else ""
        raise UserError(
            f"{flag_name(field)} {value}: {told}; lower {flag_name(field)}{alternatives}"
        )
