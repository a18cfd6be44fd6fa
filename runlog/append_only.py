"""The append-only files of a run: scalars, histograms, curves."""

import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

from runlog.disk import append, writing
from runlog.terminal import WarnOnce

HEADERS = {  # file: its first line
    "scalars.csv": "step,key,value,wall_time\n",
    "perf.csv": "step,key,value,wall_time\n",  # keys perf/..., which depend on the machine
    "histograms.jsonl": "",
    "curves.jsonl": "",
}
FLUSH_SECONDS = 10.0
FLUSH_ROWS = 5_000
LONGEST_ROW = 1_000  # bytes, in scalars.csv


class Rows:
    """Collects rows and appends them to their files in `flush`, one write per file."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._pending = {name: [] for name in HEADERS}
        self._flushed_at = time.monotonic()
        self._warn_once = WarnOnce()

    def begin(self) -> None:
        """Empties the files; the next flush writes their headers."""
        self.cut(dict.fromkeys(HEADERS, 0))
        self._pending = {name: [header] for name, header in HEADERS.items()}

    def add_scalars(self, step: int, values: Mapping[str, float], wall_time: float) -> None:
        """Raises ValueError if a key cannot be stored in a CSV file."""
        for key in values:
            if re.search(r'[,"\s]', key):
                raise ValueError(f"the key {key!r} contains a comma, a quote or white space")
        for key, value in values.items():
            name = "perf.csv" if key.startswith("perf/") else "scalars.csv"
            row = f"{step},{key},{value!r},{wall_time:.3f}\n"  # repr: equal bits, equal bytes
            self._pending[name].append(row)

    def add_json(self, name: str, row: dict) -> None:
        """name: histograms.jsonl or curves.jsonl."""
        self._pending[name].append(json.dumps(row) + "\n")

    def flush_is_due(self) -> bool:
        """Whether many rows, or old ones, are waiting to be written."""
        number = sum(len(rows) for rows in self._pending.values())
        return number > FLUSH_ROWS or time.monotonic() - self._flushed_at > FLUSH_SECONDS

    def flush(self) -> None:
        """Raises UserError if a file cannot be written; no partial rows are left in that case."""
        for name, rows in self._pending.items():
            with writing(self._folder / name):
                append(self._folder / name, "".join(rows).encode(), sync=True)
            rows.clear()
        self._flushed_at = time.monotonic()

    def sizes(self) -> dict[str, int]:
        """file -> bytes, after a flush."""
        return {name: (self._folder / name).stat().st_size for name in HEADERS}

    def cut(self, sizes: Mapping[str, int], step: int = 0) -> None:
        """Removes the rows after `step`, when the files had these sizes. If a file has lost earlier
        rows, keeps its complete lines and warns."""
        for name, size in sizes.items():
            path = self._folder / name
            with writing(path), open(path, "a+b") as file:
                if file.seek(0, os.SEEK_END) >= size:
                    os.truncate(file.fileno(), size)
                    continue
                file.seek(0)
                end_of_lines = file.read().rfind(b"\n") + 1
                os.truncate(file.fileno(), end_of_lines)
                if end_of_lines == 0:
                    file.write(HEADERS[name].encode())
            lost = "some" if end_of_lines > len(HEADERS[name]) else "all"
            problem = f"{path} has lost {lost} of its rows up to step {step}"
            self._warn_once(f"{problem}; the run continues without them")

    def has_rows(self) -> bool:
        """Whether there are any rows, on disk or still to be written."""
        is_logged = any(len(rows) > 1 for rows in self._pending.values())  # more than the header
        return is_logged or self.are_on_disk()

    def are_on_disk(self) -> bool:
        path = self._folder / "scalars.csv"
        return path.exists() and path.stat().st_size > len(HEADERS["scalars.csv"])

    def last_step(self) -> int | None:
        """The step of the last row of scalars.csv after a flush, from which a reader can tell
        whether rows are missing; None without rows."""
        with open(self._folder / "scalars.csv", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LONGEST_ROW))
            last_line = file.read().splitlines()[-1]
        step = last_line.split(b",")[0].decode()
        return int(step) if step.isdigit() else None
