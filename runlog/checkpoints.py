"""The checkpoints of a run, and its replay.

checkpoint.pt is the newest, checkpoint.prev.pt the one before, and checkpoint.next.pt one that is
complete although those of the other runs in its batch may not be. The replay of a checkpoint is
stored in separate files in replay/, one for the new rows of each save.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from runlog.disk import writing
from runlog.storage import Damaged, keep_or_fresh, load_pt, plain, sync_folder, write_pt
from runlog.terminal import UserError, WarnOnce, warn_once

CHECKPOINT = "checkpoint.pt"
PREVIOUS = "checkpoint.prev.pt"
STAGED = "checkpoint.next.pt"
FORMAT = 1  # format number that `stage` writes; older files without one can be loaded too


class Checkpoints:
    """digest: the run's hash, which is stored in the files."""

    def __init__(self, folder: Path, digest: str):
        self._folder = folder
        self._replay = folder / "replay"
        self._digest = digest
        self._chunks = []  # replay files of the newest checkpoint: [name, first row, last row + 1]
        self._num_rows = 0
        self._staged = None  # (chunks, num_rows) of a staged checkpoint that is not committed yet
        self._verified = set()  # replay files with verified checksums
        self._warn_once = WarnOnce()

    def any_exist(self) -> bool:
        """Whether there is any checkpoint file, good or not."""
        return any((self._folder / name).exists() for name in (STAGED, CHECKPOINT, PREVIOUS))

    def is_any_committed(self) -> bool:
        return any((self._folder / name).exists() for name in (CHECKPOINT, PREVIOUS))

    # ---- writing

    def stage(
        self,
        step: int,
        state: dict,
        transitions: Mapping | None,
        keep_transitions: int | None,
        elapsed: float,
        row_sizes: dict[str, int],
    ) -> None:
        """Writes checkpoint.next.pt and the new part of the replay. elapsed: seconds of training.
        row_sizes: of `Rows`."""
        chunks = list(self._chunks)
        stop = self._num_rows
        new_rows = _plain_transitions(transitions)
        if new_rows:
            start = stop
            stop += len(next(iter(new_rows.values())))
            chunk = [f"{start:010d}-{stop:010d}.pt", start, stop]
            content = {"digest": self._digest, "rows": [start, stop], "transitions": new_rows}
            write_pt(self._replay / chunk[0], content)
            chunks.append(chunk)
        if keep_transitions is not None:
            chunks = [chunk for chunk in chunks if chunk[2] > stop - keep_transitions]
        content = {
            "format": FORMAT,
            "digest": self._digest,
            "step": int(step),
            "elapsed": elapsed,
            "state": state,
            "offsets": row_sizes,
            "chunks": chunks,
            "num_rows": stop,
            "keep": keep_transitions,
        }
        write_pt(self._folder / STAGED, content)
        self._staged = chunks, stop

    def commit(self) -> None:
        """Makes the staged checkpoint the newest, and deletes replay files that no checkpoint needs
        any more."""
        if self._staged is None:
            raise RuntimeError(f"{self._folder}: there is no staged checkpoint")
        self._shift()
        chunks, num_rows = self._staged
        needed = {chunk[0] for chunk in [*chunks, *self._chunks]}  # also by the checkpoint before
        for path in self._replay.glob("*"):
            if path.name not in needed:
                path.unlink(missing_ok=True)
        self._chunks = chunks
        self._num_rows = num_rows
        self._staged = None

    def _shift(self) -> None:
        """Renames checkpoint.next.pt to checkpoint.pt, and that to checkpoint.prev.pt; after a kill
        at any point nothing is lost."""
        with writing(self._folder / CHECKPOINT):
            if (self._folder / CHECKPOINT).exists():
                os.replace(self._folder / CHECKPOINT, self._folder / PREVIOUS)
            os.replace(self._folder / STAGED, self._folder / CHECKPOINT)
            sync_folder(self._folder)

    # ---- reading

    def usable(self, is_ended: bool) -> list[tuple[Path, dict]]:
        """(path, content) of the good checkpoints, newest first. is_ended: the run has ended and
        may have deleted its replay.

        Warns about a damaged one. Raises UserError if none is good, or if one belongs to another
        configuration or a later version.
        """
        good = []
        problems = []
        for name in (STAGED, CHECKPOINT, PREVIOUS):
            path = self._folder / name
            if not path.exists():
                continue
            try:
                good.append((path, self._verify(path, is_ended)))
            except Damaged as problem:
                problems.append(str(problem))
        if problems and not good:
            remedy = keep_or_fresh(self._folder)
            raise UserError(f"no usable checkpoint: {'; '.join(problems)}; {remedy}")
        for problem in problems:
            path, content = good[0]
            self._warn_once(
                f"{problem}; using {path.name}, step {content['step']}", subject=problem
            )
        return good

    def newest(self) -> dict | None:
        """The content of the newest good checkpoint, for inspection only: its replay and rows are
        not checked, and the run may be in progress. None before the first.

        Warns about a damaged one. Raises UserError like `usable`.
        """
        problems = []
        for name in (STAGED, CHECKPOINT, PREVIOUS):
            path = self._folder / name
            try:
                content = self._read(path)
            except Damaged as problem:
                # a missing one has been renamed to the next of the three
                if path.exists():
                    problems.append(str(problem))
                continue
            for problem in problems:
                warn_once(problem, f"{problem}; using {name}, step {content['step']}")
            return content
        if problems:
            remedy = keep_or_fresh(self._folder)
            raise UserError(f"no usable checkpoint: {'; '.join(problems)}; {remedy}")
        return None

    def _read(self, path: Path) -> dict:
        """The content of a checkpoint of this run. Raises Damaged or UserError."""
        content = load_pt(path)
        if isinstance(content, dict):
            self._check_format(path, content)
        if not isinstance(content, dict) or content.get("digest") != self._digest:
            remedy = keep_or_fresh(self._folder)
            raise UserError(f"{path} belongs to another configuration; {remedy}")
        return content

    def _verify(self, path: Path, is_ended: bool) -> dict:
        """The content of a checkpoint, after checking that it is complete. Raises Damaged or
        UserError."""
        content = self._read(path)
        # the other files may lose earlier rows (Rows.cut)
        rows = self._folder / "scalars.csv"
        if not rows.exists() or rows.stat().st_size < content["offsets"][rows.name]:
            raise Damaged(f"{path} does not match: {rows} is shorter than when it was saved")
        for file, start, stop in self._chunk_files(content, is_ended):
            if file in self._verified:
                continue
            chunk = load_pt(file)
            if (chunk.get("digest"), chunk.get("rows")) != (self._digest, [start, stop]):
                raise Damaged(f"{path} does not match: {file} belongs to another run")
            self._verified.add(file)
        return content

    def _check_format(self, path: Path, content: dict) -> None:
        found = content.get("format", 0)
        if found not in range(FORMAT + 1):
            problem = (
                f"{path} has the checkpoint format {found}, and this version reads up to {FORMAT}"
            )
            remedy = f"use the version that wrote it (meta.json), or, {keep_or_fresh(self._folder)}"
            raise UserError(f"{problem}; {remedy}")

    def read_transitions(self, content: dict, is_ended: bool) -> dict[str, torch.Tensor] | None:
        """The newest rows of a checkpoint's replay, as many as it keeps; None without any."""
        files = self._chunk_files(content, is_ended)
        if not files:
            return None
        stop = content["num_rows"]
        first = files[0][1]
        if content["keep"] is not None:
            first = max(first, stop - content["keep"])
        transitions = {}
        for file, start, end in files:  # one by one: two copies of the replay may not fit in memory
            chunk = torch.load(file, map_location="cpu", weights_only=True)["transitions"]
            begin = max(start, first)
            for key, rows in chunk.items():
                if key not in transitions:
                    shape = (stop - first, *rows.shape[1:])
                    transitions[key] = torch.empty(shape, dtype=rows.dtype)
                transitions[key][begin - first : end - first] = rows[begin - start :]
        return transitions

    def _chunk_files(self, content: dict, is_ended: bool) -> list[tuple[Path, int, int]]:
        if is_ended and not self._replay.exists():  # dropped
            return []
        return [(self._replay / name, start, stop) for name, start, stop in content["chunks"]]

    # ---- going back

    def go_back_to(self, path: Path, content: dict) -> None:
        """Makes this checkpoint the newest, and drops newer ones, whose steps will be trained
        again."""
        with writing(path):
            if path.name == STAGED:
                self._shift()
            else:
                (self._folder / STAGED).unlink(missing_ok=True)
                os.replace(path, self._folder / CHECKPOINT)
        self._chunks = content["chunks"]
        self._num_rows = content["num_rows"]

    def restart(self) -> None:
        """Deletes a staged checkpoint that the other runs of the batch do not have, and its
        replay."""
        with writing(self._folder):
            (self._folder / STAGED).unlink(missing_ok=True)
            self.drop_replay()

    def drop_replay(self) -> None:
        shutil.rmtree(self._replay, ignore_errors=True)


def _plain_transitions(transitions: Mapping | None) -> dict[str, torch.Tensor]:
    """The new rows, {} without any. Raises ValueError if their lengths differ."""
    if not transitions:
        return {}
    rows = {key: plain(torch.as_tensor(value), key) for key, value in transitions.items()}
    lengths = {key: len(value) for key, value in rows.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"transitions of different lengths: {lengths}")
    return rows if next(iter(lengths.values())) else {}
