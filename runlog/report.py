"""Splits a report on the networks of a batch into the rows, histograms and curves of each run."""

from collections.abc import Sequence

import numpy as np
import torch

from runlog.run import Run


def log_report(
    runs: Run | Sequence[Run], step: int, prefix: str, report, muted: Sequence = ()
) -> None:
    """Logs a NetworkReport, or a plain dict of scalars, to the runs of its batch as
    `<prefix>/<key>`.

    The first batch axis is the runs, in order; a single Run takes a report without that axis. A
    second axis (twin critics) is numbered in the keys: with the prefix "network/qf" they are
    network/qf1/..., network/qf2/... Histograms of non-finite values are left out. muted: for each
    run, whether to leave it out (diverged). Raises ValueError if the report has another number of
    runs.
    """
    on_host = _OnHost(report)
    if isinstance(runs, Run):
        on_host.log(runs, step, prefix, ())
        return
    if len(runs) != on_host.shape[0]:
        raise ValueError(f"a report on {on_host.shape[0]} seeds for {len(runs)} runs")
    for i, run in enumerate(runs):
        if not (len(muted) and muted[i]):
            on_host.log(run, step, prefix, (i,))


class _OnHost:
    """The report as arrays, copied from the device once for all runs."""

    def __init__(self, report):
        is_plain = isinstance(report, dict)
        scalars = report if is_plain else report.scalars
        histograms = {} if is_plain else report.histograms
        curves = {} if is_plain else report.curves
        self.shape = tuple(next(iter(scalars.values())).shape)
        self.scalars = {key: _array(value) for key, value in scalars.items()}
        self.histograms = {}
        for key, (counts, edges) in histograms.items():
            self.histograms[key] = _array(counts), _array(edges)
        self.curves = {}
        for key, (x, y, extra) in curves.items():
            self.curves[key] = (
                _array(x),
                _array(y),
                {name: _array(value) for name, value in extra.items()},
            )

    def log(self, run: Run, step: int, prefix: str, index: tuple[int, ...]) -> None:
        """Logs the values at this index of the batch axes; further axes are numbered in the keys,
        from 1."""
        further = list(np.ndindex(self.shape[len(index) :]))
        names = {}
        for indices in further:
            number = "".join(str(i + 1) for i in indices)
            names[(*index, *indices)] = f"{prefix}{number}/"
        rows = {}
        for entry, name in names.items():
            for key, value in self.scalars.items():
                rows[name + key] = value[entry]
        run.log(step, rows)
        for entry, name in names.items():
            for key, (counts, edges) in self.histograms.items():
                if np.isfinite(edges[entry]).all():
                    run.log_histogram(step, name + key, counts[entry], edges[entry])
            for key, (x, y, extra) in self.curves.items():
                x = x if x.ndim == 1 else x[entry]
                extra = {field: value[entry].item() for field, value in extra.items()}
                run.log_curve(step, name + key, x, y[entry], **extra)


def _array(x: torch.Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()
