"""Dead neurons by KDE: `metrics.dead_neurons_kde` against a loop over `scipy.stats.gaussian_kde`,
on the same samples.

    python benchmarks/kde.py --json results/kde.json

Both see the same jittered activations and must give the same verdicts and peaks; the runs
alternate, medians are reported. Every round runs the whole scipy loop: about half a minute for 512
neurons x 2,048 samples on one core.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import scipy
import torch
from scipy.stats import gaussian_kde

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import metrics  # noqa: E402


def activations(neurons: int, samples: int) -> np.ndarray:
    """tanh units of every kind, jittered: in use, saturated,
    collapsed, constant, and constant with one outlier."""
    rng = np.random.default_rng(0)
    z = np.tanh(rng.normal(size=(samples, neurons)) + 2 * rng.normal(size=neurons))
    z[:, 1::5] = np.tanh(rng.normal(5, 1, size=z[:, 1::5].shape))
    z[:, 2::5] = np.sign(z[:1, 2::5])
    z[1:, 3::5] = np.sign(z[:1, 3::5])
    z[0, 3::5] *= -1
    return z + np.sqrt(1e-5) * rng.normal(size=z.shape)


def timed(function):
    """(wall seconds, CPU seconds of all threads, result)."""
    wall = time.perf_counter()
    cpu = time.process_time()
    result = function()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def peak_rss_mib() -> float:
    return (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / (1 if sys.platform == "linux" else 1024)
        / 1024
    )


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--neurons", type=int, default=512)
    parser.add_argument("--samples", type=int, default=2_048)
    parser.add_argument(
        "--rounds", type=int, default=1, help="full scipy loops; ours runs five times in each round"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the result here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    x = activations(args.neurons, args.samples)
    z = torch.tensor(x)

    def ours():
        return metrics.dead_neurons_kde(z, noise_variance=0.0)

    def scipy_loop():
        return np.array([gaussian_kde(c, bw_method=args.samples**-0.2)(c).max() for c in x.T])

    rss_before = peak_rss_mib()
    ours()  # warm up: FFT plans, thread pool
    rss_ours = peak_rss_mib() - rss_before
    times = {"ours": [], "scipy": []}
    for _ in range(args.rounds):
        for _ in range(5):
            *seconds, (dead, peak) = timed(ours)
            times["ours"].append(seconds)
        *seconds, reference = timed(scipy_loop)
        times["scipy"].append(seconds)
    (ours_wall, ours_cpu), (scipy_wall, scipy_cpu) = (
        map(statistics.median, zip(*t)) for t in times.values()
    )
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run(
        [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    status = [*git, "status", "--porcelain", "metrics.py", "benchmarks/kde.py"]
    dirty = subprocess.run(status, capture_output=True, text=True).stdout.strip()
    result = {
        "command": "python " + " ".join(["benchmarks/kde.py", *sys.argv[1:]]),
        "git": commit + ("-dirty" if dirty else ""),
        "hardware": f"{cpu_name()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "torch_threads": args.threads,
        "versions": (
            f"python {platform.python_version()}, torch {torch.__version__}, "
            f"scipy {scipy.__version__}, numpy {np.__version__}"
        ),
        "neurons": args.neurons,
        "samples": args.samples,
        "ours_wall_s": ours_wall,
        "ours_wall_range_s": [min(times["ours"])[0], max(times["ours"])[0]],
        "ours_cpu_s": ours_cpu,
        "scipy_wall_s": scipy_wall,
        "scipy_cpu_s": scipy_cpu,
        "wall_ratio": scipy_wall / ours_wall,
        "cpu_ratio": scipy_cpu / ours_cpu,
        "runs": {name: len(values) for name, values in times.items()},
        "extra_rss_ours_mib": rss_ours,
        "peak_rss_mib": peak_rss_mib(),
        "verdicts_equal": bool(np.array_equal(dead.numpy(), reference >= 20)),
        "dead_share": float((reference >= 20).mean()),
        "worst_relative_error": float(np.abs(peak.numpy() / reference - 1).max()),
    }
    for key, value in result.items():
        print(f"{key:22}{value}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    if not result["verdicts_equal"] or result["worst_relative_error"] > 1e-4:
        sys.exit("the two disagree")


if __name__ == "__main__":
    main()
