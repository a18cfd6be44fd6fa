"""What a training shows while it runs: a bar on a terminal, lines elsewhere."""

import contextlib
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from runlog import compiler, terminal

MIN_BAR = 10  # characters
PROGRESS_FILE = "RUNLOG_PROGRESS_FILE"  # environment variable, see _ProgressFile


def multiples(step: int, end: int, *periods: int) -> list[int]:
    """Every multiple of one of the periods in (step, end], in order.
    >>> multiples(10, 40, 15, 20)
    [15, 20, 30, 40]
    """
    found = set()
    for period in periods:
        next_multiple = (step // period + 1) * period
        found |= set(range(next_multiple, end + 1, period))
    return sorted(found)


class Progress:
    """A tqdm bar on a terminal, as wide as the terminal; elsewhere no bar, but one flushed line per
    `note`.

    initial, total: environment steps. desc: what is trained, such as "cheetah-run-v0 relu".
    first_update: the step that ends with the first update of this process, where the script knows
    it. The time left is estimated from there: random steps are faster, and the first update
    compiles. value: the one measure that the bar shows, such as "return 123.4".
    """

    def __init__(self, initial: int, total: int, desc: str = "", first_update: int = 0):
        self.postfix = {}  # content of the printed lines, in the order of its keys
        self.value = ""
        self._desc = desc
        self._speed_from = (initial, time.monotonic())  # of `speed`
        self._counted_from = self._speed_from  # of the bar
        self._first_update = max(first_update, initial)
        self._is_learning = False
        self._drawn_at = -math.inf
        self._noted_at = None  # the step of the last printed line
        self._file = _ProgressFile(total)
        self._file.write(initial)
        on_terminal = sys.stderr is not None and sys.stderr.isatty()
        columns = _columns()
        self._bar = tqdm(  # ascii: not every terminal has block characters
            initial=initial,
            total=total,
            disable=not on_terminal,
            ascii=" #",
            miniters=1,
            ncols=columns,
            bar_format=bar_format(Numbers(initial, total), desc, columns),
        )
        compiler.when_compiling(self._note_compiling)

    def update(self, step: int, **postfix) -> None:
        """Moves the bar to `step`; `postfix` is included in the printed lines from now on."""
        self.postfix |= postfix
        if not self._is_learning and step > self._first_update:
            self._is_learning = True
            self._counted_from = (step, time.monotonic())
        self._file.write(step)
        if self._bar.disable:
            return
        self._bar.n = step
        if time.monotonic() >= self._drawn_at + self._bar.mininterval:
            self._draw()

    def note(self, text: str) -> None:
        """Prints one line, above the bar if there is one."""
        self._draw()  # update the bar, which is shown again below the line
        terminal.say(text)

    def speed(self, step: int) -> float:
        """Environment steps per second since the last call (or the start); included in the next
        printed line."""
        now = time.monotonic()
        last_step, last_time = self._speed_from
        speed = (step - last_step) / (now - last_time)
        self._speed_from = (step, now)
        self.postfix["steps/s"] = f"{speed:.0f}"
        return speed

    def skip(self, seconds: float) -> None:
        """Excludes this time from the next speed: evaluations, metrics."""
        last_step, last_time = self._speed_from
        self._speed_from = (last_step, last_time + seconds)

    def note_postfix(self, step: int, label: str = "") -> None:
        """Prints one line with the values at this step. label: text after the step, such as "task 2
        (push-v3)"."""
        values = [f"{key} {text}" for key, text in sorted(self.postfix.items())]
        start = f"step {step}, {label}" if label else f"step {step}"
        self._noted_at = step
        self.note(f"{start}: {', '.join(values)}")

    def note_means(
        self,
        step: int,
        rows: Sequence[dict[str, float]],
        keys: Sequence[str],
        label: str = "",
    ) -> None:
        """Prints the means, over the runs' rows, of those keys that some row has; a run that has
        diverged may lack them. The first of them is the value of the bar. label: as in
        note_postfix."""
        present = [key for key in keys if any(key in row for row in rows)]
        for key in present:
            mean = np.mean([row[key] for row in rows if key in row])
            self.postfix[key] = f"{mean:.4g}"
        if present:
            self.value = f"{_short(present[0])} {self.postfix[present[0]]}"
        self.note_postfix(step, label)

    def note_end(self, step: int, returns: Sequence[float]) -> None:
        """Prints the mean return of the training games since the last line, unless this last step
        already has a line. Thus a run shorter than its periods prints a result too."""
        if self._noted_at == step:
            return
        result = "no training game has ended"
        if len(returns):
            games = "game" if len(returns) == 1 else f"{len(returns)} games"
            result = f"charts/episodic_return {np.mean(returns):.4g} (training, last {games})"
        self.note(f"step {step}: {result}")

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._draw()
        self._bar.close()
        compiler.when_compiling(None)

    def _draw(self) -> None:
        if self._bar.disable:
            return
        step = self._bar.n
        first_step, first_time = self._counted_from
        self._drawn_at = time.monotonic()
        seconds = max(self._drawn_at - first_time, 1e-9)
        speed = (step - first_step) / seconds
        seconds_left = None
        if self._is_learning and speed > 0 and seconds > 2:  # earlier the estimate would jump
            seconds_left = (self._bar.total - step) / speed
        numbers = Numbers(step, self._bar.total, speed, seconds_left, self.value)
        self._bar.ncols = _columns()
        self._bar.bar_format = bar_format(numbers, self._desc, self._bar.ncols)
        self._bar.refresh()

    def _note_compiling(self) -> None:
        self.note("compiling (about a minute)")


# ---- what the bar shows --------------------------------------------------------------------------


class Numbers(NamedTuple):
    """seconds_left: None until it can be estimated. value: "" before there is one."""

    step: int
    total: int
    speed: float = 0.0
    seconds_left: float | None = None
    value: str = ""


def _columns() -> int:
    """Usable width: some terminals wrap after their last column."""
    return max(terminal.columns(sys.stderr) - 1, 1)


def bar_format(numbers: Numbers, desc: str, columns: int) -> str:
    """tqdm's format of a line that fits into `columns` with a bar of at least MIN_BAR characters.
    Where there is not enough room parts are dropped: first the label, last the percentage."""
    for label, parts, least_bar in _layouts(numbers, desc):
        left = f"{label} " if label else ""
        right = f" {' '.join(parts)}" if parts else ""
        percentage = "100%|"
        taken = len(left) + len(percentage) + len("|") + len(right)
        if taken + least_bar <= columns:
            return f"{_escaped(left)}{{percentage:3.0f}}%|{{bar}}|{_escaped(right)}"
    return "{percentage:3.0f}%"


def _layouts(numbers: Numbers, desc: str) -> Iterator[tuple[str, list[str], int]]:
    """(label, parts after the bar, minimum length of the bar), from the longest to the shortest."""
    full, short, last_word = _labels(desc)
    step = f"{compact(numbers.step)}/{compact(numbers.total)}"
    speed = f"{_rounded(numbers.speed)}/s" if numbers.speed > 0 else ""
    left = ""
    if numbers.seconds_left is not None:
        left = f"{tqdm.format_interval(numbers.seconds_left)} left"
    exact = [f"{numbers.step:,}/{numbers.total:,}", speed and f"{speed[:-2]} steps/s", left]
    brief = [step, speed, left]
    if numbers.value:
        exact.append(numbers.value)
        brief.append(numbers.value)
    yield full, _given(exact), 2 * MIN_BAR
    yield short, _given(exact), 2 * MIN_BAR
    yield full, _given(brief), 2 * MIN_BAR
    for label in (short, last_word, ""):
        yield label, _given(brief), MIN_BAR
    yield "", _given([step, left, numbers.value]), MIN_BAR
    yield "", _given([step, left]), MIN_BAR
    yield "", [step], MIN_BAR
    yield "", [], MIN_BAR


def _labels(desc: str) -> tuple[str, str, str]:
    """The whole label, the label without suites and versions, and its last word.
    >>> _labels("dm_control/cheetah-run-v0 relu")
    ('dm_control/cheetah-run-v0 relu', 'cheetah-run relu', 'relu')
    """
    words = []
    for word in desc.split():
        words.append(re.sub(r"-v\d+$", "", word.rpartition("/")[2]))
    return desc, " ".join(words), (words or [""])[-1]


def _given(parts: Sequence[str]) -> list[str]:
    return [part for part in parts if part]


def _short(key: str) -> str:
    """eval/episodic_return -> return"""
    return key.rpartition("/")[2].removeprefix("episodic_")


def _rounded(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"


def compact(number: int) -> str:
    """A number with three significant digits.
    >>> [compact(n) for n in (999, 12_345, 999_999, 10_000_000)]
    ['999', '12.3k', '1M', '10M']
    """
    scaled = float(number)
    for unit in ("", "k", "M"):
        if scaled < 999.5:
            return f"{scaled:.3g}{unit}"
        scaled /= 1_000
    return f"{scaled:.3g}G"


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


class _ProgressFile:
    """Reports progress to the process that started this one (scripts/sweep.py): "STEP TOTAL" in the
    file named by the variable PROGRESS_FILE. Optional: if it cannot be written, it is skipped."""

    def __init__(self, total: int):
        self._path = os.environ.get(PROGRESS_FILE)
        self._total = total
        self._written_at = -math.inf

    def write(self, step: int) -> None:
        if not self._path:
            return
        if time.monotonic() < self._written_at + 1.0 and step < self._total:
            return
        self._written_at = time.monotonic()
        with contextlib.suppress(OSError):
            Path(self._path).write_text(f"{step} {self._total}\n")
