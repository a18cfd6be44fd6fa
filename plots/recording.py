"""A folder of figures: CSV files of what is drawn, and figures.json, which records how.

A module of figures declares each kind as a Kind and writes a figure with write_figure. The picture
is drawn from the CSV that was just written, so `figures.py redraw` draws the same.
"""

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

import runlog
from plots import style
from runlog import disk

WRITE_AGAIN = "write it again with the figure's own command"
NUMBERS = {"step", "value", "low", "high", "mean", "std"}  # columns of CSVs that are drawn
SPEC = {  # key of an entry of figures.json: its type, and that of its items or values
    "caption": (list, str),
    "csv": (list, str),
    "variants": (list, str),
    "activations": (list, str),
    "activation_of": (dict, str),
    "hollow": (list, str),
    "networks": (list, str),
    "lines": (list, str),
    "scales": (dict, str),
    "panels": (dict, str),
    "measured": (dict, str),
    "study": (str, str),
    "unit": (str, str),
}


@dataclass(frozen=True)
class Kind:
    """A kind of figure."""

    name: str  # in figures.json
    draw: Callable[[object, dict], Figure]  # of rows (or tables: file -> rows) and its entry


# ---- CSV -----------------------------------------------------------------------------------------


def write_csv(
    path: Path, rows: Sequence[dict], digits: int = 6, kinds: Sequence[Kind] = ()
) -> Path:
    """Rows with the same columns; numbers with so many significant digits.

    kinds: of the figures that are drawn from the file. Raises UserError: the file is the data of
    another figure.
    """
    check_free(path.parent, [path.name], kinds)
    with disk.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            for row in rows:
                writer.writerow({key: rounded(value, digits) for key, value in row.items()})
    return path


def check_free(
    folder: Path, files: Sequence[str], kinds: Sequence[Kind], figures: Sequence[str] = ()
) -> None:
    """Raises UserError if, according to the figures.json of a folder, these files are the data of a
    figure of another kind, or such a figure has one of the names in `figures`."""
    if not (folder / "figures.json").exists():
        return
    kind_names = [kind.name for kind in kinds]
    remedy = "give another place with --out"
    for name, spec in read_index(folder).items():
        if spec["kind"] in kind_names:
            continue
        other = f"the {spec['kind']} figure {name}"
        for file in spec.get("csv", [f"{name}.csv"]):
            if file in files:
                by = f"a {kind_names[0]} figure" if kind_names else "a table"
                fault = f"{other} is drawn from it (figures.json), and {by} would replace it"
                raise runlog.UserError(f"{folder / file}: {fault}; {remedy}")
        if name in figures:
            fault = f"is {other} (figures.json), and a {kind_names[0]} figure would replace it"
            raise runlog.UserError(f"{folder / name}: {fault}; {remedy}")


def rounded(value: object, digits: int) -> object:
    return f"{value:.{digits}g}" if isinstance(value, float) else value


def read_csv(path: Path) -> list[dict]:
    """Rows of a figure's CSV, the columns NUMBERS as floats. Raises UserError: missing, empty or
    broken."""
    remedy = f"restore it, or {WRITE_AGAIN}"
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
        for row in rows:
            if None in row or None in row.values():
                raise ValueError("a row is longer or shorter than the header")
            for name in NUMBERS & {*row}:
                row[name] = float(row[name])
    except OSError as error:
        raise runlog.UserError(f"{path}: {error.strerror}; {remedy}") from None
    except (ValueError, csv.Error) as error:
        raise runlog.UserError(f"{path}: is broken ({error}); {remedy}") from None
    if not rows:
        raise runlog.UserError(f"{path}: has no rows; {remedy}")
    return rows


def rows_where(rows: Sequence[dict], **columns) -> list[dict]:
    """The rows that have these values in these columns."""
    return [row for row in rows if all(row[name] == value for name, value in columns.items())]


def distinct(rows: Sequence[dict], column: str) -> list:
    """The distinct values of a column, in order of appearance."""
    return list(dict.fromkeys(row[column] for row in rows))


def columns(rows: Sequence[dict], *names: str) -> list[np.ndarray]:
    """Columns of rows as arrays of floats."""
    return [np.array([row[name] for row in rows], dtype=float) for name in names]


# ---- writing figures -----------------------------------------------------------------------------


def file_name(name: str, taken: set[str]) -> str:
    """The file name of a figure that is named after a run's settings: odd characters become -, as
    in the names of run folders. A name in `taken` is not given again, and the new name is added to
    it."""
    plain = re.sub("[^A-Za-z0-9.,=_-]", "-", name)[:120]
    found = plain
    number = 1
    while found in taken:
        number += 1
        found = f"{plain}-{number}"
    taken.add(found)
    return found


def figure_place(out: Path) -> tuple[Path, str, tuple[str]]:
    """Folder, name and extension of the picture that --out names; the default extension is png.
    Raises UserError: no file name, or another extension."""
    if out.name in ("", ".."):
        raise runlog.UserError(f"--out {str(out)!r}: names no file; use figures/curves.png, say")
    ending = out.suffix[1:] or "png"
    if ending not in ("png", "pdf", "svg"):
        raise runlog.UserError(f"--out {out}: figures are png, pdf or svg; use such an extension")
    return out.parent, out.stem, (ending,)


def write_figure(
    out: Path,
    name: str,
    kind: Kind,
    rows: Sequence[dict],
    endings: Sequence[str] = ("png", "pdf"),
    **spec,
) -> list[Path]:
    """Write name.csv in `out`, draw name.png and name.pdf (`endings`) from it, and record the
    figure in figures.json there. Without rows, only print a line."""
    if not rows:
        print(f"{name}: no data for it in these runs, not drawn")
        return []
    check_free(Path(out), [], [kind], [name])
    csv_path = write_csv(Path(out) / f"{name}.csv", rows, kinds=[kind])
    return [csv_path, *record_figure(out, name, kind, endings, **spec)]


def record_figure(
    out: Path, name: str, kind: Kind, endings: Sequence[str] = ("png", "pdf"), **spec
) -> list[Path]:
    """Record in figures.json in `out` how `name` is drawn, from name.csv or, with csv=[...], from
    these files there, and draw it. Raises UserError: the name belongs to a figure of another
    kind."""
    folder = Path(out)
    check_free(folder, [], [kind], [name])
    index = folder / "figures.json"
    entries = read_index(folder) if index.exists() else {}
    entries[name] = {"kind": kind.name, **spec}
    with disk.writing(index):
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dict(sorted(entries.items())), indent=1)
        index.write_text(text + "\n", encoding="utf-8")
    return save_figure(folder, name, entries[name], kind, endings)


def save_figure(
    folder: Path, name: str, spec: dict, kind: Kind, endings: Sequence[str]
) -> list[Path]:
    """Write a figure as files with these extensions beside its CSV."""
    figure = drawn_figure(folder, name, spec, kind)
    paths = [style.save(figure, folder / f"{name}.{ending}") for ending in endings]
    for path in paths:
        style.reduce_colours(path)
    return paths


def drawn_figure(folder: Path, name: str, spec: dict, kind: Kind) -> Figure:
    """Draw a figure of a folder from its CSV and its entry in figures.json. An entry with
    "csv": [...] is drawn from these files, as a dict of their rows. Raises UserError: a file is
    missing or broken, or lacks what is drawn."""
    files = spec.get("csv", [f"{name}.csv"])
    tables = {file: read_csv(folder / file) for file in files}
    data = tables if "csv" in spec else tables[files[0]]
    faults = (KeyError, ValueError, TypeError, IndexError, AttributeError, StopIteration)
    try:
        with matplotlib.rc_context(style.RC):
            return kind.draw(data, spec)
    except faults as error:
        if isinstance(error, KeyError):
            fault = f"lacks {error}"
        else:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            fault = f"cannot be drawn ({reason})"
        paths = ", ".join(str(folder / file) for file in files)
        raise runlog.UserError(f"{paths}: {name} {fault}; {WRITE_AGAIN}") from error


# ---- figures.json --------------------------------------------------------------------------------


def read_index(folder: Path, kinds: Mapping[str, Kind] | None = None) -> dict[str, dict]:
    """figures.json of a folder: figure -> its kind and what it is drawn with. Raises UserError:
    missing, broken, or (with `kinds`) of an unknown kind."""
    path = folder / "figures.json"
    fault = None
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        for name, spec in index.items():
            fault = fault or entry_fault(name, spec, kinds)
    except OSError as error:
        raise runlog.UserError(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        fault = "is not an index of figures"
    if fault:
        raise runlog.UserError(f"{path}: {fault}; {WRITE_AGAIN}")
    return index


def entry_fault(name: str, spec: dict, kinds: Mapping[str, Kind] | None) -> str | None:
    """What is wrong with an entry of figures.json: its kind, the types of its values, or a file
    outside the folder. None if nothing is."""
    kind = spec["kind"]
    if not isinstance(kind, str) or (kinds is not None and kind not in kinds):
        return f"{name} is of an unknown kind"
    for key, (outer, inner) in SPEC.items():
        value = spec.get(key, outer())
        items = value.values() if isinstance(value, dict) else value
        if not isinstance(value, outer) or not all(isinstance(item, inner) for item in items):
            expected = "a string" if outer is str else f"a {outer.__name__} of strings"
            return f"{name}: its {key} is not {expected}"
    if not all(is_plain(file) for file in (name, *spec.get("csv", ()))):
        problem = "not a plain file name, and would lie in another folder"
        return f"{name} or a file of its csv is {problem}"
    return None


def is_plain(name: str) -> bool:
    """Whether a file of this name lies directly in the folder to which it is joined."""
    has_separator = re.search(r"[/\\\x00]", name) is not None
    return bool(name) and not has_separator and name not in (".", "..")
