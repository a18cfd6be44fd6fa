"""Whether the largest tensors of a run fit into the available memory."""

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch

import activations
from runlog.cli import as_typed, flag_name
from runlog.terminal import UserError

FLOAT_BYTES = 4
ADAM_COPIES = 4  # of each trained number: itself, its gradient, and Adam's two moments
NTK_COPIES = 2  # of each sample's gradient: itself, and one while the products are formed


@dataclasses.dataclass
class NetworkSize:
    """How many numbers a network holds: its trained parameters, and what one input leaves in its
    hidden layers for the backward pass (the pre-activation and output of each branch, and what
    joins them)."""

    parameters: int = 0
    activations: int = 0

    def add_layer(
        self,
        inputs: int,
        units: int,
        expression: str,
        norm: int = 0,
        kernel: int = 1,
        pixels: int = 1,
    ) -> int:
        """Counts a hidden layer and returns its number of features (doubled by crelu). inputs:
        features, each with `kernel` weights for each unit; norm: normalised elements, each with
        scale and bias; pixels: of the output image of a convolution."""
        terms = activations.parse(expression)
        width = activations.ACTIVATIONS[terms[0][0]].width
        branches = sum(len(product) for product in terms)
        self.parameters += branches * (inputs * kernel * units + units + 2 * norm)
        of_branch = 1 + width  # pre-activation, output
        if norm:
            of_branch += 3  # before the norm, without the mean, normalised
        joined = width if branches * width > 1 else 0  # the product, or the outputs side by side
        self.activations += (branches * of_branch + joined) * units * pixels
        return width * units

    def add_head(self, inputs: int, outputs: int) -> None:
        """Counts a linear output layer."""
        self.parameters += inputs * outputs + outputs
        self.activations += outputs

    def training_bytes(self) -> int:
        """Bytes of the parameters, their gradients and Adam's moments."""
        return FLOAT_BYTES * ADAM_COPIES * self.parameters

    def sample_bytes(self, number: int) -> int:
        """Bytes that a forward pass of this many inputs keeps for the backward pass."""
        return FLOAT_BYTES * self.activations * number

    def ntk_bytes(self, number: int) -> int:
        """Bytes of the gradients of this many inputs, for the NTK."""
        return FLOAT_BYTES * NTK_COPIES * self.parameters * number


def mlp_size(
    inputs: int, widths: Sequence[int], expression: str, outputs: int, layer_norm: bool = False
) -> NetworkSize:
    """NetworkSize of `activations.mlp` followed by a linear output layer."""
    size = NetworkSize()
    for width in widths:
        inputs = size.add_layer(inputs, width, expression, norm=width if layer_norm else 0)
    size.add_head(inputs, outputs)
    return size


def available_memory(device: torch.device) -> int | None:
    """Bytes still available to this process: of the GPU, or of the machine within the limits of its
    control groups (containers, Slurm), or else the total memory. None where no system call reports
    it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = []
    with contextlib.suppress(OSError, AttributeError):
        text = Path("/proc/meminfo").read_text()
        found.append(1024 * int(re.search(r"MemAvailable:\s+(\d+)", text).group(1)))
    with contextlib.suppress(OSError):
        groups = Path("/proc/self/cgroup").read_text()
        found += _left_in_control_groups(groups, Path("/sys/fs/cgroup"))
    if not found:
        with contextlib.suppress(OSError, ValueError):
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)


def _left_in_control_groups(groups: str, root: Path) -> list[int]:
    """What each memory limit leaves: those of the groups in /proc/self/cgroup (versions 2 and 1)
    and of their parents. Unused cached files count as free."""
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
                rows = (folder / "memory.stat").read_text().splitlines()
                cached = dict(row.split() for row in rows).get(cache, 0)
                used = int((folder / usage).read_text()) - int(cached)
                left.append(max(int((folder / limit).read_text()) - used, 0))
            folder = folder.parent
    return left


def bytes_text(number: float) -> str:
    """2_500_000_000 -> "2.5 GB"; powers of 1000."""
    units = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
    power = min(int(math.log(max(number, 1), 1000) + 1e-9), len(units) - 1)
    return f"{number / 1000**power:.3g} {units[power]}"


def check_memory(
    args, device: torch.device, needs: dict[str, int], on_host: dict[str, int] | None = None
) -> None:
    """Raises UserError, naming the flag to lower, if the largest tensors of a run do not fit into
    the available memory.

    needs: fields that determine the size of a part, separated by spaces -> bytes on `device`, for
    all seeds. on_host: the same for parts that are always in the machine's memory.
    """
    places = {device: dict(needs)}
    host = device if device.type == "cpu" else torch.device("cpu")
    for fields, size in (on_host or {}).items():
        sizes = places.setdefault(host, {})
        sizes[fields] = sizes.get(fields, 0) + size
    for place, sizes in places.items():
        available = available_memory(place)
        if available is not None and sum(sizes.values()) > available:
            raise UserError(_too_large(args, place, sizes, available))


def _too_large(args, device: torch.device, sizes: dict[str, int], available: int) -> str:
    """The message; for the largest part it names the flag that exceeds its default the most."""
    fields = max(sizes, key=sizes.get).split()
    above = {field: _over_default(args, field) for field in fields}
    field = max(fields, key=above.get)
    others = [flag_name(other) for other in fields if other != field and above[other] > 1]
    where = f"memory of {device}" if device.type == "cuda" else "memory"
    needed = f"the run would need about {bytes_text(sum(sizes.values()))} of {where}"
    problem = f"{needed}, {bytes_text(available)} are available"
    value = as_typed(getattr(args, field))
    remedy = f"lower {flag_name(field)}"
    if others:
        remedy += f" (or {', '.join(others)})"
    return f"{flag_name(field)} {value}: {problem}; {remedy}"


def _over_default(args, field: str) -> float:
    """The ratio of a flag to its default."""
    value = getattr(args, field)
    default = getattr(type(args)(), field)
    if isinstance(value, tuple):
        value = math.prod(value)
        default = math.prod(default)
    return value / max(default, 1)
