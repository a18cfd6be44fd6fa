"""benchmarks/gpu.py: a job that fails or hangs costs only itself,
and the code of all parts runs on the CPU."""

import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


gpu = load("gpu")

READY = f"print({gpu.READY!r}, flush=True); input()"
WRITE = "open(os.environ['TMPDIR'] + '/result.json', 'w').write('{\"rows\": [{\"speed\": 5.0}]}')"
PROGRAMS = {
    "good": f"import os; {READY}; {WRITE}",
    "detailed": f"import os; {READY}; {WRITE}; {READY}; {WRITE.replace('5.0', '6.0')}",
    "broken before": "import sys; sys.exit('no such thing')",
    "broken within": f"import os, sys; {READY}; {WRITE}; sys.exit('out of memory')",
    "hangs": f"import os, time; {READY}; {WRITE}; time.sleep(60)",
    "slow": f"import os, time; time.sleep(3); {READY}; {WRITE}",
    "nothing to do": "pass",
}


def run(tmp_path, names, limit=1.0, **flags):
    jobs = [gpu.Job(name, [sys.executable, "-c", PROGRAMS[name]], limit) for name in names]
    written = []
    args = gpu.Args(out=tmp_path / "gpu.json", device="cpu", **flags)
    gpu.run_jobs(jobs, args, tmp_path, lambda: written.append([job.report() for job in jobs]))
    return jobs, written


def test_a_job_that_fails_or_hangs_costs_only_itself(tmp_path):
    jobs, written = run(tmp_path, list(PROGRAMS), ready_seconds=1.5)
    assert {job.name: job.status for job in jobs} == {
        "good": "done",
        "detailed": "done",
        "broken before": "failed",
        "broken within": "failed",
        "hangs": "timed out",
        "slow": "done",
        "nothing to do": "done",
    }
    reports = {report["name"]: report for report in written[-1]}
    assert "no such thing" in reports["broken before"]["error"]
    assert "out of memory" in reports["broken within"]["error"]
    assert "longer than 1 s" in reports["hangs"]["error"]
    for name in ("good", "broken within", "hangs", "slow"):  # earlier measurements are kept
        assert reports[name]["result"] == {"rows": [{"speed": 5.0}]}, name
    assert reports["detailed"]["result"] == {"rows": [{"speed": 6.0}]}
    assert all(job.has_ended() for job in jobs)
    statuses = [[report["status"] for report in reports] for reports in written]
    # written after each job, in turn
    assert ["done", "ready"] in [status[:2] for status in statuses]


def test_nothing_starts_after_the_budget(tmp_path):
    jobs, _ = run(tmp_path, ["hangs", "good"], limit=4.0, budget_seconds=3.0)
    assert [job.status for job in jobs] == ["timed out", "skipped"]


def test_a_job_that_does_not_warm_up_in_time_is_given_up(tmp_path):
    jobs, _ = run(tmp_path, ["slow", "good"], budget_seconds=2.0, ready_seconds=1.0)
    assert [job.status for job in jobs] == ["timed out", "done"]
    assert "did not warm up" in jobs[0].error


def test_the_jobs_are_complete_with_the_most_important_first():
    names = [job.name for job in gpu.make_jobs(gpu.Args())]
    assert names[:3] == [
        "updates crational 10",
        "updates relu 10",
        "loop crational 10 cudagraphs True",
    ]
    cells = {
        f"updates {a} {n}"
        for a, n in itertools.product(("relu", "crational", "tanh_hr"), (1, 10, 32))
    }
    assert cells == {name for name in names if name.startswith("updates")}
    assert sum(name.startswith("loop") for name in names) == 4
    assert sum(name.startswith("atari") for name in names) == 15
    assert len(set(names)) == len(names)


def test_the_table_shows_what_was_measured(tmp_path):
    report = {"seconds": 3.0, "machine": {}, "jobs": []}
    job = gpu.Job("good one", [])
    report["jobs"] = [job.report() | {"error": "why | not\nlast", "status": "failed"}]
    report["jobs"][0]["result"] = {"rows": [{"seeds": 10, "speed": 12345.6}, {"note": 0.1234}]}
    text = gpu.table(report)
    assert "| seeds | speed | note |" in text
    assert "| 10 | 12,346 |  |" in text
    assert "|  |  | 0.123 |" in text
    assert "why / not; last" in text


def test_ratios_compare_the_same_activation_and_size():
    def row(seeds, mode, speed, activation="tanh_hr"):
        values = {"seeds": seeds, "mode": mode, "seed_updates_per_s": speed}
        return values | {"activation": activation}

    rows = [row(1, "eager", 9.0, "relu"), row(10, "cudagraphs", 60.0), row(1, "eager", 4.0)]
    floors = [
        {"seeds": 10, "branches": n, "precision": p, "in_graph_per_s": 100.0 * n}
        for n, p in ((1, "float32"), (2, "TF32"), (2, "float32"))
    ]
    floors[1]["in_graph_per_s"] = 999.0
    plain = {"peer": "plain eager SAC, replay on the host", "seed_updates_per_s": 2.0}
    jobs = [{"result": {"rows": [*floors, plain]}}, {"result": {}}]
    found = gpu.with_ratios(rows, jobs)[1]
    assert found["over_eager_1_seed"] == 15.0
    assert found["over_plain"] == 30.0
    assert found["share_of_floor"] == pytest.approx(0.3)


def end_to_end(tmp_path, *flags) -> dict:
    out = tmp_path / "gpu.json"
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--quick", "--no-compile"]
    done = subprocess.run(
        [*command, "--out", out, *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert out.with_suffix(".md").read_text().strip() in done.stdout
    return json.loads(out.read_text())


def test_updates_end_to_end(tmp_path):
    report = end_to_end(tmp_path, "--parts", "updates")
    rows = []
    for job in report["jobs"]:
        rows += job["result"]["rows"]
    assert [(row["seeds"], row["mode"]) for row in rows] == [
        (2, "not compiled"),
        (2, "eager"),
        (1, "not compiled"),
        (1, "eager"),
    ]
    for row in rows:
        expected = row["seeds"] * 1e3 / row["ms_per_update"]
        assert row["seed_updates_per_s"] == pytest.approx(expected)
    assert all(job["result"]["kernels_eager"]["count"] > 100 for job in report["jobs"])
    assert report["machine"]["versions"]["torch"]


@pytest.mark.slow
def test_all_parts_end_to_end(tmp_path):
    report = end_to_end(tmp_path)
    for job in report["jobs"]:
        result = job["result"]
        assert job["status"] == "done", job
        assert result["rows"] or result["note"], job
        assert not [row for row in result["rows"] if "error" in row], job
