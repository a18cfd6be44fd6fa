"""What a training shows while it runs: a bar on a terminal, lines elsewhere."""

import sys
import time
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm


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
    """A tqdm bar on a terminal; elsewhere no bar, one flushed line per `note`. initial, total:
    environment steps."""

    def __init__(self, initial: int, total: int, desc: str = ""):
        self.postfix = {}  # what is shown behind the bar
        self._clock = time.monotonic()
        self._clock_step = initial
        on_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._bar = tqdm(  # ascii: not every terminal has blocks
            initial=initial,
            total=total,
            desc=desc,
            disable=not on_terminal,
            dynamic_ncols=True,
            ascii=True,
        )

    def update(self, step: int, **postfix) -> None:
        """Move the bar to `step` and show `postfix`, and what was shown before, behind it."""
        self.postfix |= postfix
        if not self._bar.disable:
            self._bar.set_postfix(self.postfix, refresh=False)
            self._bar.update(step - self._bar.n)

    def note(self, text: str) -> None:
        """Print one line, above the bar if there is one."""
        if self._bar.disable:
            print(text, flush=True)
        else:
            self._bar.write(text)

    def speed(self, step: int) -> float:
        """Environment steps per second since the last call (or the start); shows it behind the
        bar."""
        now = time.monotonic()
        speed = (step - self._clock_step) / (now - self._clock)
        self._clock = now
        self._clock_step = step
        self.postfix["sps"] = f"{speed:.0f}"
        return speed

    def skip(self, seconds: float) -> None:
        """Leave this time out of the next speed: evaluations, metrics."""
        self._clock += seconds

    def note_means(self, step: int, rows: Sequence[dict[str, float]], keys: Sequence[str]) -> None:
        """Print the means over the runs' rows of those keys that the first row has, and show them
        behind the bar."""
        for key in keys:
            if key in rows[0]:
                mean = np.mean([row.get(key, np.nan) for row in rows])
                self.postfix[key] = f"{mean:.4g}"
        told = [f"{key} {text}" for key, text in sorted(self.postfix.items())]
        self.note(f"step {step}: {', '.join(told)}")

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()
