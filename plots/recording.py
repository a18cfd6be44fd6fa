"""recording."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

import runlog
from plots.style import RC, _fewer_colours, _save


def _print(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print(
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:])),
            sep="  ",
        )


def _write_csv(path: Path, rows: list[dict], digits: int = 6) -> Path:
    """Rows of one set of columns; numbers with so many significant digits."""
    rounded = (
        {k: f"{v:.{digits}g}" if isinstance(v, float) else v for k, v in row.items()}
        for row in rows
    )
    with runlog.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rounded)
    return path


def _columns(rows: list[dict], where: tuple[str, str], *names: str) -> list[np.ndarray]:
    return [
        np.array([row[name] for row in rows if row[where[0]] == where[1]], dtype=float)
        for name in names
    ]


NUMBERS = {"step", "value", "low", "high", "mean", "std"}  # columns of CSVs that are drawn


def _file_name(name: str, taken: set[str]) -> str:
    """A figure's name, made of a run's settings, as a file of the folder: odd characters become -, as in run folders'
    names; no second figure gets the name of one in `taken`, which learns it."""
    plain = re.sub("[^A-Za-z0-9.,=_-]", "-", name)[:120]
    found = plain
    number = 1
    while found in taken:
        number += 1
        found = f"{plain}-{number}"
    taken.add(found)
    return found


def write_figure(
    out: Path, name: str, kind: str, rows: list[dict], kinds=("png", "pdf"), **spec
) -> list[Path]:
    """name.csv in `out`, and name.png and name.pdf (`kinds`) drawn from it; figures.json there learns how. Without
    rows: nothing, and a line that says so."""
    if not rows:
        print(f"{name}: no data for it in these runs, not drawn")
        return []
    csv_path = _write_csv(Path(out) / f"{name}.csv", rows)
    return [csv_path, *record_figure(out, name, kind, kinds, **spec)]


def record_figure(
    out: Path, name: str, kind: str, kinds: Sequence[str] = ("png", "pdf"), **spec
) -> list[Path]:
    """Tell figures.json in `out` how `name` is drawn, from name.csv or, with csv=[...], from these files there; and
    draw it."""
    index = Path(out) / "figures.json"
    known = read_index(index.parent) if index.exists() else {}
    known[name] = {"kind": kind, **spec}
    with runlog.writing(index):
        index.parent.mkdir(parents=True, exist_ok=True)
        index.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n", encoding="utf-8")
    return redraw(Path(out), name, kinds)


def read_index(folder: Path) -> dict[str, dict]:
    """figures.json of a folder: figure -> its kind and what it is drawn with. Raises UserError: none, or broken."""
    path = folder / "figures.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        problems = []
        for name, spec in index.items():
            problems += _problems(name, spec)
    except OSError as error:
        raise runlog.UserError(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        problems = ["is no index of figures"]
    if problems:
        raise runlog.UserError(f"{path}: {problems[0]}; write it anew by the figure's own command")
    return index


SPEC = {  # key of an entry of figures.json: its kind, and that of its items or values
    "caption": (list, str),
    "csv": (list, str),
    "variants": (list, str),
    "activations": (list, str),
    "networks": (list, str),
    "lines": (list, str),
    "scales": (dict, str),
    "panels": (dict, str),
    "study": (str, str),
    "unit": (str, str),
}


def _problems(name: str, spec: dict) -> list[str]:
    """What is wrong with an entry of figures.json: its kind, the kinds of its values, a file outside the folder."""
    from plots.kinds import DRAWERS

    if spec["kind"] not in DRAWERS:
        return [f"{name} is of an unknown kind"]
    found = []
    for key, (kind, of) in SPEC.items():
        value = spec.get(key, kind())
        items = value.values() if isinstance(value, dict) else value
        if not isinstance(value, kind) or not all(isinstance(item, of) for item in items):
            found.append(
                f"{name}: its {key} is not {'a text' if kind is str else f'a {kind.__name__} of texts'}"
            )
    if not found and not all(_is_plain(file) for file in (name, *spec.get("csv", ()))):
        found.append(
            f"{name} or a file of its csv is no plain file name, but would lie in another folder"
        )
    return found


def _is_plain(name: str) -> bool:
    """Whether a file of this name lies in the folder to which it is joined."""
    return bool(name) and not re.search(r"[/\\\x00]", name) and name not in (".", "..")


def read_csv(path: Path) -> list[dict]:
    """Rows of a figure's CSV, the columns NUMBERS as floats. Raises UserError: missing, empty or broken."""
    remedy = "restore it, or write it anew by the figure's own command"
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
        for row in rows:
            if None in row or None in row.values():
                raise ValueError("a row is longer or shorter than the header")
            row.update({name: float(row[name]) for name in NUMBERS & {*row}})
    except OSError as error:
        raise runlog.UserError(f"{path}: {error.strerror}; {remedy}") from None
    except (ValueError, csv.Error) as error:
        raise runlog.UserError(f"{path}: is broken ({error}); {remedy}") from None
    if not rows:
        raise runlog.UserError(f"{path}: has no rows; {remedy}")
    return rows


def figure_of(folder: Path, name: str) -> Figure:
    """A figure of a folder from its CSV and its entry in figures.json. An entry with "csv": [...] is drawn from these
    files, as a dict of their rows. Raises UserError: a file is missing or broken, or lacks what is drawn."""
    from plots.kinds import DRAWERS

    spec = read_index(folder)[name]
    files = spec.get("csv", [f"{name}.csv"])
    tables = {file: read_csv(folder / file) for file in files}
    try:
        with matplotlib.rc_context(RC):
            return DRAWERS[spec["kind"]](tables if "csv" in spec else tables[files[0]], spec)
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, StopIteration) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        lacks = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be drawn ({reason})"
        told = f"{name} {lacks}; write it anew by the figure's own command"
        raise runlog.UserError(
            f"{', '.join(str(folder / file) for file in files)}: {told}"
        ) from error


def redraw(folder: Path, name: str, kinds: Sequence[str] = ("png",)) -> list[Path]:
    """Write figure_of as files of these kinds beside its CSV."""
    figure = figure_of(folder, name)
    paths = [_save(figure, folder / f"{name}.{kind}") for kind in kinds]
    for path in paths:
        _fewer_colours(path)
    return paths


def redraw_all(folders: Sequence[Path]) -> list[Path]:
    """Draw as PNG every figure that a figures.json in these folders, or below, knows. Raises UserError: none there."""
    paths = []
    for folder in folders:
        found = sorted(Path(folder).rglob("figures.json"))
        if not found:
            raise runlog.UserError(
                f"{folder}: no figures.json in it or below; give folders of drawn figures"
            )
        paths += [
            path
            for index in found
            for name in read_index(index.parent)
            for path in redraw(index.parent, name)
        ]
    return paths
