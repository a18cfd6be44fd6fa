"""Grids, cells, run folders and wrong input of scripts/sweep.py.

`pytest -q tests/test_sweep.py` (about 15 s).
"""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import time

import golden
import pytest
from own_scripts import SCRIPTS
from sweep_drill import ROOT, TOY, environment, grid, launcher, sweep_plan, sweep_task

import function_approximation
import runlog
import sac_continuous


@pytest.mark.parametrize(
    "text",
    [
        "a.py",
        "a.py{,-x}",
        "{a,b}{1..3}c{d,e}",
        "x{a,b{1,2},{c,d}e}y",
        "{3..1}{-1..1}",
        "--f={relu,tanh*tanh,identity+silu}",
        "{{1..2},{7..8}}/{,}",
    ],
)
def test_braces_expand_as_in_bash(text):
    done = subprocess.run(
        ["bash", "-fc", f"printf '%s\\n' {text}"], capture_output=True, text=True, check=True
    )
    assert sweep_plan.expand(text) == done.stdout.splitlines()


def test_alternatives_may_hold_spaces_and_be_alone():
    assert sweep_plan.expand("x {--a 1,--b 2 --c {3,4}} {relu}") == [
        "x --a 1 relu",
        "x --b 2 --c 3 relu",
        "x --b 2 --c 4 relu",
    ]
    for wrong in ("a {b", "a b}", "{a}}", "}{a,b}", "{a,{b}"):
        with pytest.raises(runlog.UserError, match="balance the braces"):
            sweep_plan.expand(wrong)


def test_commands_are_counted_before_they_are_expanded():
    for text in (
        "x",
        "{a,b}{1..3}c{d,e}",
        "x{a,b{1,2},{c,d}e}y",
        "{3..1}{-1..1}",
        "{{1..2},{7..8}}/{,}",
        "{a}{relu}",
    ):
        assert sweep_plan.count_commands(text) == len(sweep_plan.expand(text))
    assert sweep_plan.count_commands("{1..10000000000}{-5..5}") == 110_000_000_000
    assert len(sweep_plan.expand_all(["x {1..300}", "y {1..300}"])) == 600


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        (
            ["x.py --seed {1..10000000000}"],
            "makes 10,000,000,000 commands; a sweep has at most 100,000",
        ),
        (["x.py {1..1000} {1..1000} {1..1000}"], "makes 1,000,000,000 commands"),
        (["x.py " + "{a,b}" * 64], "makes 18,446,744,073,709,551,616 commands"),
        (
            ["x.py {1..60000}", "y.py {1..60000}"],
            "y.py {1..60000}: makes more than 100,000 commands in all",
        ),
        (["x.py {1..9" + "9" * 5000 + "}"], "a bound has more than 18 digits"),
        (["x.py " + "{" * 5000 + "}" * 5000], "more than 20 braces within braces"),
        ([""], "'': makes an empty command"),
        (["{, }"], "'{, }': makes an empty command"),
        (["x.py", "{,y.py}"], "'{,y.py}': makes an empty command"),
    ],
)
def test_malformed_grids_are_refused(grids, message):
    with pytest.raises(runlog.UserError) as error:
        sweep_plan.expand_all(grids)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_standard_input_without_a_grid():
    for stdin in (
        io.StringIO(""),
        io.StringIO("# nothing\n\n"),
        None,
        io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), "utf-8"),
    ):
        with pytest.raises(runlog.UserError, match=r"^-: standard input "):
            sweep_plan.read_grids(["-"], stdin)


def test_seeds_in_groups():
    assert sweep_plan.group_seeds([3, 1, 2, 9, 2], 10) == [[1, 2, 3], [9]]
    assert sweep_plan.group_seeds(range(1, 6), 2) == [[1, 2], [3, 4], [5]]
    assert sweep_plan.group_seeds([4, 5], 1) == [[4], [5]] and sweep_plan.group_seeds([], 1) == []
    assert sweep_plan.split_seed(["--a", "--seed", "4", "b"]) == (["--a", "b"], 4)
    assert sweep_plan.split_seed(["--a", "--seed=4", "b"]) == (["--a", "b"], 4)
    for kept in (
        ["--seed", "4", "--num-seeds", "2"],
        ["--num_seeds=2", "--seed", "4"],
        ["--seed"],
        ["--seed", "x"],
    ):
        assert sweep_plan.split_seed(kept) == (kept, None)


def plan(*grids: str, runs_dir=None, seeds_per_process=0) -> list[dict]:
    commands = [*itertools.chain.from_iterable(map(sweep_plan.expand, grids))]
    return sweep_plan.plan(commands, runs_dir, seeds_per_process, 3)


def test_cells_of_seeds_and_of_scripts():
    sac = "sac_continuous.py --activation {relu,crational --utd 10} --seed {1..3}"
    atari = "pqn_atari.py --env-id ALE/Pong-v5 --seed {1..2}"
    processes = plan(
        sac,
        "sac_continuous.py --num-seeds 4 --seed 7",
        atari,
        "sac_continuous.py --activation relu --seed {2,5}",
    )
    planned = [shlex.join(["x.py", *process["argv"][1:]]) for process in processes]
    assert planned == [
        "x.py --activation relu --seed 1 --num-seeds 3",
        "x.py --activation relu --seed 5",
        "x.py --activation crational --utd 10 --seed 1 --num-seeds 3",
        "x.py --num-seeds 4 --seed 7",
        "x.py --env-id ALE/Pong-v5 --seed 1 --env-threads 3",
        "x.py --env-id ALE/Pong-v5 --seed 2 --env-threads 3",
    ]
    assert [len(process["runs"]) for process in processes] == [3, 1, 3, 4, 1, 1]
    assert len(set().union(*(process["runs"] for process in processes))) == 13
    assert re.fullmatch(
        r"dm_control-cheetah-run-v0__sac_continuous__relu__s1-3__\w{10}", processes[0]["id"]
    )
    assert processes[0]["env"]["OMP_NUM_THREADS"] == "3"
    assert plan(sac, sac) == plan(sac)  # overlapping grids
    halves = [process["argv"][-1] for process in plan(sac, seeds_per_process=2)]
    assert halves == ["2", "3", "2", "3"]
    (process,) = plan("sac_continuous.py", runs_dir="there")
    assert process["runs"][0].startswith("there/dm_control")
    assert process["argv"][-2:] == [
        "--runs-dir",
        "there",
    ]
    assert plan("sac_continuous.py --runs-dir here", runs_dir="there")[0]["runs"][0].startswith(
        "here/dm_control"
    )


MAINS = {  # a command to plan; of a script that is not here that of its first golden run
    "sac_continuous": (
        "--env-id Pendulum-v1 --activation tanh_hr --seed 3 --num-seeds 2 --rational.init-scale 2"
    ),
    "dqn_atari": "--env-id ALE/Pong-v5 --activation crelu --seed 2",
    "ppo_atari": "--env-id Pong --width 64",
    "pqn_atari": "--env-id Breakout --encoder-activation relu",
    "continual_supervised": "--activation rational --seed 4 --num-seeds 3 --tasks permuted_labels",
    "function_approximation": (
        "--activations relu tanh_hr --learning-rates 1e-3 1e-2 --seed 2 --num-seeds 2"
    ),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_planned_folders_match_those_that_the_script_opens(script, tmp_path, monkeypatch):
    opened = []

    @contextlib.contextmanager
    def record(runs, args, **options):
        opened.extend(str(run.folder) for run in runs)
        yield []

    module = SCRIPTS[script]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runlog, "open_batches", record)
    monkeypatch.setattr(runlog.opening, "open_batches", record)
    monkeypatch.setattr(function_approximation, "draw", lambda *_: None)
    monkeypatch.setattr(function_approximation, "save_table1", lambda *_: None)
    main_flags = MAINS.get(script, golden.TRAININGS[script][0])
    flags = [*main_flags.split(), "--device", "cpu", "--threads", "1"]
    args = runlog.parse_args(module.Args, flags)
    module.main(args)
    (process,) = plan(shlex.join([f"{script}.py", *flags]))
    assert sorted(process["runs"]) == sorted(opened) and len(opened) == len({*opened}) > 0
    assert opened[0].startswith("runs/") and f"__{script}__" in opened[0]


def test_a_sequence_of_tasks_is_planned_at_its_full_length():
    (process,) = plan(
        "sac_continuous.py --env-id dm_control/{walker-walk-v0 dm_control/walker-run-v0} "
        "--steps-per-task 10000"
    )
    args = runlog.parse_args(sac_continuous.Args, process["argv"][1:])
    (run,) = runlog.seed_runs(dataclasses.replace(args, total_timesteps=20_000), "sac_continuous")
    assert process["runs"] == [str(run.folder)]


def test_a_file_that_adds_an_activation(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import activations\nimport sac_continuous\nraise RuntimeError('imported')\n"
    )
    monkeypatch.chdir(tmp_path)
    (process,) = plan("mine.py --activation snake --seed {1..2}")
    assert process["argv"] == [
        "mine.py",
        "--activation",
        "snake",
        "--seed",
        "1",
        "--num-seeds",
        "2",
    ]
    assert "__sac_continuous__snake__s2__" in process["runs"][1]


def test_names_that_a_file_may_add_are_left_to_its_training(tmp_path, monkeypatch):
    """The file is not run by the sweep, and neither is a module that registers environments."""
    (tmp_path / "mine.py").write_text("import activations\nimport sac_continuous\n")
    monkeypatch.chdir(tmp_path)
    assert len(plan("mine.py --activation {relu,softsign} --env-id Mine-v0")) == 2
    assert len(plan("sac_continuous.py --env-id not_there:Mine-v0")) == 1


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        ("", "give a grid"),
        ("sac_continuous.py --utd {1,2", "balance the braces"),
        ("sac_continuous.py --activation 'x", "balance the quotes"),
        ("python sac_continuous.py", "leave the interpreter out"),
        ("sac_continous.py", "sac_continous.py: is not a script here"),
        ("metrics.py", "has no class Args"),
        ("sac_continuous.py --utd {1,x}", "sac_continuous.py --utd x: "),
        ("sac_continuous.py --fresh", "--fresh cannot be used in a sweep"),
        ("sac_continuous.py --help", "trains nothing"),
        ("function_approximation.py --seed {1,2}", "share runs, such as "),
        ("sac_continuous.py --env-id a b", "--steps-per-task"),
        (
            "sac_continuous.py --num-seeds 0",
            "sac_continuous.py --num-seeds 0: --num-seeds 0: must lie in [1, inf)",
        ),
        ("continual_supervised.py --num-seeds -3", "--num-seeds -3: must lie in [1, inf)"),
        (
            "continual_supervised.py --num-seeds 10000000000",
            "--num-seeds 10000000000: at most 100,000",
        ),
        ("pqn_atari.py --seed -1", "--seed -1: must lie in [0, inf)"),
        ("pqn_atari.py --env-id Breakot", "--env-id Breakot: unknown; did you mean Breakout"),
        ("pqn_atari.py --width {512,0}", "pqn_atari.py --width 0: --width 0: must lie in [1, inf)"),
        (
            "sac_continuous.py --activation {relu,crationl} --seed {1..10}",
            "--activation 'crationl': unknown name 'crationl'; did you mean crational",
        ),
        (
            "ppo_atari.py --encoder-activation {relu,rlu}",
            "--encoder-activation 'rlu': unknown name 'rlu'; did you mean relu",
        ),
        (
            "td3_continuous.py --env-id metaworld/{reach-v3,sweep-v2}",
            "--env-id metaworld/sweep-v2: unknown; did you mean metaworld/sweep-v3",
        ),
        (
            "continual_supervised.py --rational.constraint-schedule {trained,fixed}",
            "--rational.constraint-schedule fixed: relu has no |x/c|^d; use crational",
        ),
        (
            "function_approximation.py --activations relu {tanh,tanhh}",
            "--activations 'tanhh': unknown name 'tanhh'",
        ),
        (
            "function_approximation.py --learning-rates",
            "--learning-rates: give at least one value",
        ),
        ("sac_continuous.py --tags 'a\nb'", "has a newline or another control character"),
        ("sac_continuous.py --slots 10001", "--slots 10001: more than 10,000 processes at once"),
        ("sac_continuous.py --patience -1", "--patience -1.0: must lie in [0, inf)"),
        ("sac_continuous.py --slots 0", "--slots 0: must lie in [1, inf)"),
        ("sac_continuous.py --limit -1", "--limit -1: must lie in [0, inf)"),
        ("sac_continuous.py --slots-per-gpu 2", "--slots-per-gpu 2: no GPU here; use --slots"),
        ("sac_continuous.py --name ../x", "--name ../x: is a folder's name"),
        ("sac_continuous.py --ray --slurm x", "does not go with --ray"),
        ("sac_continuous.py --ray --slots 3", "Ray counts CPUs and GPUs itself"),
        ("sac_continuous.py --slurm x --slots-per-gpu 2", "with --slurm give 1"),
    ],
)
def test_mistakes_are_reported_in_one_line(grids, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    flags = re.search(r" (--(slots|limit|name|ray|slots-per-gpu|slurm|patience) .*)$", grids)
    command = grids[: flags.start()] if flags else grids
    argv = [command] if command else []
    if flags:
        argv += flags[1].split()
    with pytest.raises(SystemExit) as stop, runlog.exit_on_user_error():
        launcher.main(runlog.parse_args(launcher.Args, argv))
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    assert message in error
    assert not list(tmp_path.iterdir())


def test_dry_run_prints_what_is_left(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [str(TOY), "--seed", "2", "--total", "1", "--pause", "0.0"]
    subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment(), check=True)
    monkeypatch.setattr("sys.stdin", io.StringIO("# a comment\n\n" + grid(3, 1, 0.0) + "\n"))
    args = runlog.parse_args(launcher.Args, ["-", grid(3, 2, 0.0), "--dry-run", "--ray"])
    assert launcher.main(args) == 0
    printed = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    left = [("1", "1"), ("1", "3"), ("2", "1"), ("2", "2"), ("2", "3")]
    assert [
        tuple(line[i] for i in (line.index("--total") + 1, line.index("--seed") + 1))
        for line in printed
    ] == left
    assert all([shutil.which(line[0]), line[1]] == [sys.executable, str(TOY)] for line in printed)
    assert not (tmp_path / "runs/sweeps").exists()


def test_the_address_after_ray_is_distinguished_from_a_grid():
    for words, address in (
        (["--ray", "g.py --x"], ()),
        (["--ray", "h:1", "g.py --x"], ("h:1",)),
        (["g.py --x", "--ray"], ()),
    ):
        args = launcher.validate(runlog.parse_args(launcher.Args, words))
        assert (args.ray, args.grids) == (address, ("g.py --x",))


def test_slurm_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launcher, "MAX_ARRAY", 4)
    words = [
        grid(6, 1, 0.0),
        "--slurm",
        "s p.sbatch",
        "--slots",
        "2",
        "--threads",
        "3",
        "--name",
        "n",
    ]
    assert launcher.main(runlog.parse_args(launcher.Args, words)) == 0
    assert capsys.readouterr().out == "sbatch 's p.sbatch'\nsbatch 's p.sbatch-2'\n"
    manifest = [
        json.loads(line)
        for line in (tmp_path / "runs/sweeps/n/manifest.jsonl").read_text().splitlines()
    ]
    assert list(sweep_task.read_manifest(tmp_path / "runs/sweeps/n")) == [
        line["id"] for line in manifest
    ]
    seen = []
    for name, last in (("s p.sbatch", 3), ("s p.sbatch-2", 1)):
        text = (tmp_path / name).read_text()
        assert f"#SBATCH --array=0-{last}%2\n" in text
        assert "--cpus-per-task=3\n" in text
        assert "--gres" not in text
        assert subprocess.run(["bash", "-n", name], cwd=tmp_path).returncode == 0
        for task in range(last + 1):  # as a task of the array would
            env = environment(SLURM_ARRAY_TASK_ID=str(task))
            assert subprocess.run(["bash", str(tmp_path / name)], cwd="/", env=env).returncode == 0
            seen.append(len(list(tmp_path.glob("runs/*/finished.txt"))))
    assert seen == [1, 2, 3, 4, 5, 6]
    assert not list(ROOT.glob("*.sbatch"))
    assert launcher.main(runlog.parse_args(launcher.Args, words)) == 0  # nothing is left


@pytest.mark.parametrize("flag", ["--runs-dir", "--name", "--slurm"])
@pytest.mark.parametrize("value", ["x\ntouch pwned\n#", "x\r", "x\0y", "\x1b[2J", ""])
def test_paths_with_control_characters_are_refused(flag, value, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [grid(1, 1, 0.0), flag, value] + ([] if flag == "--slurm" else ["--slurm", "s.sbatch"])
    with pytest.raises(SystemExit) as stop, runlog.exit_on_user_error():
        launcher.main(runlog.parse_args(launcher.Args, words))
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith(f"error: {flag} ")
    assert error.count("\n") == 1
    assert error[:-1].isprintable() and not list(tmp_path.iterdir())


def sbatch_words(line: str) -> list[str]:
    """As sbatch 22.05 reads a #SBATCH line (_get_argument of sbatch/opt.c):
    quotes of both kinds, backslash escapes."""
    return shlex.split(line.removeprefix("#SBATCH "))


@pytest.mark.parametrize(
    "name", ["a b", "it's", 'the "new" one', "100%j", "$(touch pwned)", "`x`;#&", "läufe"]
)
def test_slurm_files_hold_any_path(name, tmp_path, monkeypatch):
    """scripts/drill_slurm.sh has a real sbatch read one."""
    monkeypatch.chdir(tmp_path)
    words = [
        grid(1, 1, 0.0),
        "--name",
        "n",
        "--runs-dir",
        name,
        "--slurm",
        "s.sbatch",
        "--patience",
        "7.5",
    ]
    assert launcher.main(runlog.parse_args(launcher.Args, words)) == 0
    lines = (tmp_path / "s.sbatch").read_text().splitlines()
    directives = [sbatch_words(line) for line in lines if line.startswith("#SBATCH ")]
    folder = f"{tmp_path}/{name}/sweeps/n"
    output = f"--output={folder.replace('%', '%%')}/slurm-%A_%a.log"
    assert directives == [
        ["--job-name=n"],
        ["--array=0-0"],
        ["--ntasks=1", "--cpus-per-task=1"],
        [output, "--open-mode=append"],
        ["--requeue", "--signal=B:TERM@8"],
    ]
    env = environment(SLURM_ARRAY_TASK_ID="0")
    assert subprocess.run(["bash", str(tmp_path / "s.sbatch")], cwd="/", env=env).returncode == 0
    assert len(list((tmp_path / name).glob("toy__*/finished.txt"))) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "s.sbatch"])


def test_slurm_files_that_cannot_be_written_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("print('precious')\n")
    for flags, message in (
        (["--slurm", "mine.py"], "--slurm mine.py: exists and is not an sbatch file; name another"),
        (
            ["--slurm", "s", "--runs-dir", "a\\b"],
            "has a backslash, which sbatch cannot use; use another folder",
        ),
        (["--slurm", "none/s"], "cannot write none/s: No such file or directory"),
    ):
        with pytest.raises(SystemExit) as stop, runlog.exit_on_user_error():
            launcher.main(runlog.parse_args(launcher.Args, [grid(1, 1, 0.0), *flags]))
        error = capsys.readouterr().err
        assert stop.value.code == 2
        assert message in error
        assert error.count("\n") == 1
    assert (tmp_path / "mine.py").read_text() == "print('precious')\n"


BROKEN = [
    "import activations, sac_continuous\nclass (",
    "class Args: pass\ndef runs_of(args): pass\n1 / 0\n__main__",
    "\0",
]


@pytest.mark.parametrize("text", BROKEN)
def test_broken_scripts_are_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_of_mine.py").write_text(text)
    with pytest.raises(
        runlog.UserError,
        match=r"^broken_of_mine.py: cannot be (read as a Python script|imported) \(",
    ):
        plan("broken_of_mine.py")
    assert "broken_of_mine" not in sys.modules


def test_a_new_script_is_planned_without_being_listed(tmp_path, monkeypatch):
    """Any file that has Args and runs_of."""
    monkeypatch.chdir(tmp_path)
    text = """
        import dataclasses, runlog
        @dataclasses.dataclass
        class Args:
            seed: int = 1
            num_seeds: int = runlog.option(1)
            env_id: str = "toy"
            activation: str = "relu"
            gain: float = 1.0
            runs_dir: str = runlog.option("runs")
            fresh: bool = runlog.option(False)
        def runs_of(args):
            return runlog.seed_runs(args, "mine_alone")
        if __name__ == "__main__":
            raise RuntimeError("not imported")
    """
    (tmp_path / "mine_alone.py").write_text(textwrap.dedent(text))
    first, second = plan("mine_alone.py --gain {1,2} --seed {1..3}")
    assert len(first["runs"]) == 3 and "__mine_alone__relu__s3__" in first["runs"][2]
    assert first["argv"][-4:] == ["--seed", "1", "--num-seeds", "3"] and second["argv"][2] == "2"
    (tmp_path / "mine_without.py").write_text(textwrap.dedent(text).replace("runs_of", "runs"))
    with pytest.raises(runlog.UserError, match=r"mine_without.py: has no function runs_of\(args\)"):
        plan("mine_without.py")
    empty = textwrap.dedent(text).replace('runlog.seed_runs(args, "mine_alone")', "[]")
    (tmp_path / "mine_empty.py").write_text(empty)
    with pytest.raises(runlog.UserError, match=r"^mine_empty.py --seed 1: trains nothing; give"):
        plan("mine_empty.py --seed 1")


def test_without_ray_the_error_names_the_remedy(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as stop, runlog.exit_on_user_error():
        launcher.main(runlog.parse_args(launcher.Args, [grid(1, 1, 0.0), "--ray"]))
    assert stop.value.code == 2
    assert (
        capsys.readouterr().err
        == "error: --ray: Ray is not installed; pip install -r requirements-sweep.txt\n"
    )


def test_the_commands_of_the_docs_are_planned(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    text = (ROOT / "docs" / "sweeps.md").read_text() + (ROOT / "scripts" / "sweep.py").read_text()
    commands = re.findall(r"^ *python scripts/sweep.py (.*)$", text, re.MULTILINE)
    assert len(commands) >= 8
    for command in commands:
        words = [word for word in shlex.split(command) if word != "--dry-run"]
        assert launcher.main(runlog.parse_args(launcher.Args, [*words, "--dry-run"])) == 0
        assert capsys.readouterr().out.count("python ") >= 2


# ---- the table -----------------------------------------------------------------------------------

TABLE = [
    "sac_continuous.py --env-id metaworld/push-v3 --activation relu --seed 1 --num-seeds 10",
    "sac_continuous.py --env-id metaworld/push-v3 --activation crational --utd 10 --seed 1",
    "sac_continuous.py --env-id metaworld/reach-v3 --activation crational --layer-norm --seed 1",
]


def planned(tmp_path) -> list[dict]:
    common = {"cwd": str(tmp_path), "python": sys.executable, "env": {}, "runs": ["x"]}
    return [{"id": f"p{i}", "argv": shlex.split(text), **common} for i, text in enumerate(TABLE)]


def test_labels_show_what_differs(tmp_path):
    found = sweep_plan.labels(planned(tmp_path))
    assert [*found.values()] == [
        "push-v3, relu, seeds 1-10",
        "push-v3, crational, seed 1, utd 10",
        "reach-v3, crational, seed 1, layer-norm",
    ]
    assert sweep_plan.labels(planned(tmp_path)[:1]) == {"p0": "sac_continuous"}
    same = ["a.py --width 3", "a.py --width 4", "b.py --width 3"]
    processes = [{"id": text, "argv": text.split()} for text in same]
    assert [*sweep_plan.labels(processes).values()] == ["a, width 3", "a, width 4", "b, width 3"]


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_table_shows_what_differs_and_how_far_each_process_is(
    columns, tmp_path, monkeypatch, capsys
):
    class Running:
        def running(self):
            return [(f"p{i}", time.time() - 200 * i) for i in range(3)]

    processes = planned(tmp_path)
    log = tmp_path / "logs" / "p1.log"
    log.parent.mkdir()
    log.write_text("$ python x.py\nstep 12000: eval/success 0.5, steps/s 99\n")
    file = sweep_task.progress_path(tmp_path, processes[1])
    file.parent.mkdir()
    file.write_text("12345 1000000\n")
    size = os.terminal_size((columns, 24))
    monkeypatch.setattr(launcher.shutil, "get_terminal_size", lambda: size)
    board = launcher.Board(tmp_path, processes, Running(), 3)
    board.live = True
    board.waiting = 7
    board.draw()
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) < columns
    assert lines[0].split()[:4] == ["running", "done", "failed", "waiting"]
    assert lines[1].split() == ["3", "0", "0", "7"]
    assert len({line[: columns // 2] for line in lines[2:]}) == 3
    assert "starting" in lines[2]
    assert "12.3k/1M" in lines[3]
    assert "3 min" in lines[3]
    if columns >= 80:
        assert "push-v3, relu, seeds 1-10 " in lines[2]
    if columns >= 120:
        assert lines[3].endswith("eval/success 0.5, steps/s 99")


def test_lines_of_a_training_are_shown_whole_and_without_its_folder():
    folder = "/a/runs b/Pendulum-v1__sac_continuous__tanh*tanh__s1__0123456789"
    for line, shown in {
        f"3 new runs, such as {folder}": "3 new runs",
        f"new run in {folder}": "new run",
        f"resuming {folder} from step 200": "resuming from step 200",
        f"resuming 2 runs such as {folder} from step 200": "resuming 2 runs from step 200",
        f"finished: {folder}": "finished",
        f"{folder}: stopped before the first checkpoint": "stopped before the first checkpoint",
        "eval/episodic_return 3, runs/s 2": "eval/episodic_return 3, runs/s 2",
    }.items():
        assert launcher.without_folders(line) == shown
    text = "eval/success 0.3, overestimation/mean -12.5, steps/s 80"
    assert launcher.fitting(text, len(text)) == text
    assert launcher.fitting(text, len(text) - 1) == "eval/success 0.3, overestimation/mean -12.5"
    assert launcher.fitting(text, 3) == "eval/success 0.3"  # cut where the line ends


def test_time_to_go_follows_the_steps(tmp_path, monkeypatch):
    """Two slots, three waiting. p0 made 100 of its 1,000 steps in the 50 s since the first look at
    it, and p1 has not reported anything yet."""
    clock = [1_000.0]
    monkeypatch.setattr(launcher.time, "time", lambda: clock[0])

    class Running:
        def running(self):
            return [("p0", 980.0), ("p1", 1_030.0)]

    processes = planned(tmp_path)
    board = launcher.Board(tmp_path, processes, Running(), 2)
    board.waiting = 3
    file = sweep_task.progress_path(tmp_path, processes[0])
    file.parent.mkdir()
    file.write_text("400 1000")  # resumed in the middle
    assert board.time_to_go() == ""
    clock[0] = 1_050.0
    file.write_text("500 1000")
    rest = 50 / 100 * 500
    whole = 70 + rest
    assert board.time_to_go() == launcher.span((rest + (whole - 20) + 3 * whole) / 2)
    board.seconds = [100.0]  # one has ended
    assert board.time_to_go() == launcher.span((rest + (100 - 20) + 3 * 100) / 2)


def test_a_process_knows_where_to_report_its_step(tmp_path):
    program = "import os; open(os.environ['RUNLOG_PROGRESS_FILE'], 'w').write('3 10')"
    process = {"id": "p", "argv": ["-c", program], "runs": ["x"], "env": {}}
    process |= {"cwd": str(tmp_path), "python": sys.executable}
    assert sweep_task.read_progress(tmp_path, process) is None
    sweep_task.start(tmp_path, process, {}).wait()
    assert sweep_task.read_progress(tmp_path, process) == (3, 10)
    sweep_task.start(tmp_path, process | {"argv": ["-c", ""]}, {}).wait()
    assert sweep_task.read_progress(tmp_path, process) is None  # the next attempt begins without
    assert sweep_task.PROGRESS_FILE == runlog.progress.PROGRESS_FILE
