"""What a run logged about its layers: the rows of curves.jsonl and histograms.jsonl."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import runlog
from plots.reading import RESTORE


def read_rows(
    folder: Path, file: str, name: str, keep_all: bool = False, max_branches: float = np.inf
) -> dict[tuple[str, str], dict[str, list[dict]]]:
    """(layer, network) -> last part of the key -> rows of a .jsonl file: the first and the newest,
    or all of them.

    Takes the keys `network/<network>/<layer>/<name>...`, e.g. name "kde". If only the ends of a
    curve's x were stored, x is written out. max_branches: how many branches, or outputs, of a layer
    are read; the others have []. Raises UserError: a broken line.
    """
    path = folder / file
    pattern = re.compile(r'\{"step": \d+, "key": "network/([^"]+)/([^"/]+)/(' + name + r'[^"/]*)"')
    lines = defaultdict(list)  # (network, layer, key): numbers of lines, and lines
    for number, line in enumerate(whole_lines(path), start=1):
        match = pattern.match(line)
        if match is None:
            continue
        kept = lines[match.groups()]
        branch = re.match(r"(?:branch|activation)(\d+)", match[3])
        if branch is not None and int(branch[1]) >= max_branches:
            continue
        if not keep_all:
            del kept[1:]  # the previous newest
        kept.append((number, line))

    found = defaultdict(dict)
    for (network, layer, key), kept in sorted(lines.items()):
        found[layer, network][key] = [parse_row(path, number, line) for number, line in kept]
    return found


def last_row(path: Path, key: str) -> dict | None:
    """The newest row of a key of a .jsonl file; None if there is none. Raises UserError: broken."""
    newest = None
    for number, line in enumerate(whole_lines(path), start=1):
        if f'"key": "{key}"' in line:
            newest = number, line
    return None if newest is None else parse_row(path, *newest)


def whole_lines(path: Path) -> Iterator[str]:
    """The lines of a .jsonl file, without a half-written last line of a run in progress; none if
    there is no file. Raises UserError if one is broken."""
    number = 0
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith("\n"):
                    return
                if not line.startswith('{"step": ') or not line.endswith("}\n"):
                    raise broken(path, number)
                yield line
    except FileNotFoundError:
        return
    except OSError as error:
        raise runlog.UserError(f"{path}: {error.strerror or error}; {RESTORE}") from None
    except UnicodeDecodeError:
        raise broken(path, number + 1) from None


def broken(path: Path, number: int) -> runlog.UserError:
    remedy = "restore the file, or train the run again"
    return runlog.UserError(f"{path}: line {number} is broken; {remedy}")


def parse_row(path: Path, number: int, line: str) -> dict:
    """A line of a .jsonl file: a histogram, or a curve, whose x is written out if only its ends
    were stored. Raises UserError: broken."""
    try:
        row = json.loads(line)
        fits = fits_histogram(row) if "counts" in row else fits_curve(row)
    except (ValueError, TypeError, KeyError, RecursionError):
        fits = False
    if not fits:
        raise broken(path, number)
    return row


def fits_histogram(row: dict) -> bool:
    """Whether a histogram has one more edge than counts."""
    counts = np.array(row["counts"], dtype=float)
    edges = np.array(row["edges"], dtype=float)
    return counts.ndim == 1 and edges.shape == (len(counts) + 1,)


def fits_curve(row: dict) -> bool:
    """Whether a curve has as many x as y. Writes x out if only its two ends were stored."""
    x = np.array(row["x"], dtype=float)
    y = np.array(row["y"], dtype=float)
    if x.shape == (2,):
        x = np.linspace(*x, len(y))
        row["x"] = x
    return x.ndim == 1 and x.shape == y.shape and len(x) > 0


def depth(layer: str) -> tuple:
    """Sort key: conv1, conv2, ..., fc1, fc2, ..., fc10."""
    return layer.startswith("fc"), len(layer), layer
