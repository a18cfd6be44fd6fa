"""The Atari scripts beside other libraries on the same games, in turns: environment steps/s.

    python benchmarks/atari_peers.py --algorithms dqn ppo --out peers.json
    python benchmarks/atari_peers.py --algorithms pqn --cleanrl FILE --jax PYTHON --out pqn.json

Every variant of an algorithm is a process that first prepares (games, compilation, warm-up
iterations, a replay beyond its start of learning), and then trains for --turn-steps environment
steps whenever it is its turn, while the others sleep. Each round has one turn of each, every other
round in reversed order, so that noise of the machine affects all alike. The table gives medians
over rounds of steps/s, and medians of the ratios within a round; in brackets the lowest and the
highest. All play the script's games with the script's hyper-parameters and relu; dqn explores in a
tenth of its steps from the start, as in most of a long run, and learns from step 2,000 on.

Ours: the script, compiled, without metrics, evaluations, test games and checkpoints; dqn with
--no-double-q, since Stable-Baselines3's has no Double-DQN target, and, as ours_double_q, with the
script's default, which takes one more forward pass.

SB3: Stable-Baselines3's DQN and PPO; its DQN has a replay of 50,000 stacks: 1M would take 28 GB.

--cleanrl, for pqn: CleanRL's own pqn_atari_envpool.py, unmodified, on our games under envpool's
name (benchmarks/peers/for_cleanrl). It runs eagerly, with LayerNorm over channels, height and
width.

--jax, for pqn: purejaxql's PQN in current jax (benchmarks/peers/pqn_jax.py), with a Python of its
own: `python -m venv purejax`, then `purejax/bin/pip install torch==2.13.0 jax==0.10.2 flax==0.12.8
optax==0.2.8 ale-py==0.12.1 gymnasium==1.4.0 tyro tqdm`.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import runlog
from benchmarks import atari
from runlog import hardware

PEERS = Path(__file__).resolve().parent / "peers"
TURN_STEPS = {"dqn": 400, "ppo": 2_048, "pqn": 4_096}  # 2 to 20 seconds of a CPU with 2 cores
WARM_UP_ITERATIONS = 2  # of ppo and pqn
DQN_LEARNING_STARTS = 2_000
DQN_WARM_UP = 400  # environment steps beyond it
CLEANRL_URL = (
    "https://raw.githubusercontent.com/vwxyzjn/cleanrl/"
    "fe8d8a03c41a7ef5b523e2e354bd01c363e786bb/cleanrl/pqn_atari_envpool.py"
)


@dataclasses.dataclass
class Args:
    algorithms: tuple[Literal["dqn", "ppo", "pqn"], ...] = ("dqn", "ppo", "pqn")
    env_id: str = "Breakout"  # a game of ale_py
    rounds: int = 7  # turns of each variant
    turn_steps: int = 0  # environment steps of a turn; 0 = 400 (dqn), 2,048 (ppo), 4,096 (pqn)
    sb3: bool = True  # also Stable-Baselines3
    cleanrl: Path | None = None  # also CleanRL's PQN: the script, downloaded
    jax: str | None = None  # also PQN in jax, with this Python
    threads: int = 0  # CPU threads, for jax only 1 counts (else see --pin); 0 = each one's default
    env_threads: int = 0  # threads that step the games; 0 = as many as cores
    pin: tuple[int, ...] = ()  # CPU cores to stay on; none = any
    compete: int = 0  # busy processes at the same time
    device: Literal["cpu", "cuda"] = "cpu"
    compile: bool = True  # torch.compile our script; --no-compile runs it eagerly
    quick: bool = False  # tiny batches and turns, to see that everything runs
    out: Path | None = None  # file for the numbers, JSON


# what --quick takes instead of the script's defaults
QUICK = {
    "dqn": {"learning_starts": 64, "batch_size": 4, "buffer_size": 1_000},
    "ppo": {"num_envs": 2, "num_steps": 8, "num_minibatches": 2},
    "pqn": {"num_envs": 4, "num_steps": 4, "num_minibatches": 2},
}


# ---- variants ----------------------------------------------------------------------------------


class Variant:
    """A training in a process of its own, which continues when it is asked to."""

    def __init__(self, name: str, command: list[str], env: dict[str, str], folder: Path):
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                env=env,
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def answer(self) -> dict:
        """The next line of its output. Raises UserError: it has ended."""
        line = self.process.stdout.readline()
        if not line:
            lines = self.log.read_text(errors="replace").splitlines() or ["no message"]
            print("\n".join(lines[-20:]), file=sys.stderr)
            code = self.process.wait()
            raise runlog.UserError(f"{self.name} has ended with exit code {code}: {lines[-1]}")
        return json.loads(line)

    def play(self, steps: int) -> dict:
        """One turn: its steps, seconds and CPU seconds, and those of the sleep before it."""
        with contextlib.suppress(BrokenPipeError):  # its log says why
            print(steps, file=self.process.stdin, flush=True)
        return self.answer()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def script_args(args: Args, name: str, folder: Path):
    """The script's flags."""
    module = importlib.import_module(f"{name}_atari")
    flags = {
        "total_timesteps": 10_000_000,
        "checkpoint_frequency": 100_000,  # dqn's file has room for two such intervals
        "checkpoint_minutes": 0,
        "ntk_frequency": 0,
    }
    if name == "dqn":
        flags["learning_starts"] = DQN_LEARNING_STARTS
        flags["double_q"] = False  # Stable-Baselines3 has no Double DQN
    if name == "pqn":
        flags["num_test_envs"] = 0  # the peers have none
    if args.quick:
        flags |= QUICK[name]
    options = {"device": args.device, "threads": args.threads, "env_threads": args.env_threads}
    common = atari.Args(env_id=args.env_id, compile=args.compile, **options)
    script = atari.script_args(common, module, runs_dir=str(folder / "runs"))
    script = dataclasses.replace(script, **flags)
    return module.validate(script)


def iteration_steps(script) -> int:
    """Environment steps after which the same work repeats."""
    if hasattr(script, "train_frequency"):
        return max(script.train_frequency, script.num_envs)
    return script.num_envs * script.num_steps


def warm_up_steps(script) -> int:
    """Environment steps before the first turn."""
    if hasattr(script, "train_frequency"):
        return script.learning_starts + DQN_WARM_UP
    return WARM_UP_ITERATIONS * iteration_steps(script)


def start_variants(args: Args, name: str, script, folder: Path) -> list[Variant]:
    """Ours first."""
    flags = dataclasses.asdict(script)
    del flags["rational"]  # of no consequence for relu
    settings = {
        "algorithm": name,
        "script": flags,
        "warm_up": warm_up_steps(script),
        "sb3_buffer_size": min(script.buffer_size, 50_000) if name == "dqn" else None,
    }
    as_json = json.dumps(settings)
    env = dict(os.environ)
    if args.threads:
        env["OMP_NUM_THREADS"] = str(args.threads)
    variants = [Variant("ours", [sys.executable, str(PEERS / "ours.py"), as_json], env, folder)]
    if name == "dqn":
        runs_dir = str(folder / "runs_double_q")
        with_double_q = {"script": flags | {"double_q": True, "runs_dir": runs_dir}}
        command = [sys.executable, str(PEERS / "ours.py"), json.dumps(settings | with_double_q)]
        variants.append(Variant("ours_double_q", command, env, folder))
    peer_env = env | {"TMPDIR": str(folder)}  # which is deleted; ours keeps its compiled code
    if args.sb3 and name != "pqn":  # which it does not have
        command = [sys.executable, str(PEERS / "sb3.py"), as_json]
        variants.append(Variant("sb3", command, peer_env, folder))
    if args.cleanrl and name == "pqn":
        command = [sys.executable, str(args.cleanrl.resolve()), *cleanrl_flags(args, script)]
        path = str(PEERS / "for_cleanrl")
        if os.environ.get("PYTHONPATH"):
            path += os.pathsep + os.environ["PYTHONPATH"]
        own_env = peer_env | {"PYTHONPATH": path, "ATARI_PEERS": as_json}
        variants.append(Variant("cleanrl", command, own_env, folder))
    if args.jax and name == "pqn":
        own_env = peer_env | {"JAX_PLATFORMS": args.device}
        if args.threads == 1:
            given = os.environ.get("XLA_FLAGS", "")
            own_env["XLA_FLAGS"] = f"{given} --xla_cpu_multi_thread_eigen=false".strip()
        command = [str(Path(args.jax).absolute()), str(PEERS / "pqn_jax.py"), as_json]
        variants.append(Variant("jax", command, own_env, folder))
    return variants


def cleanrl_flags(args: Args, script) -> list[str]:
    """The script's hyper-parameters for CleanRL's."""
    flags = {
        "env-id": f"{script.env_id}-v5",
        "total-timesteps": script.total_timesteps,
        "learning-rate": script.learning_rate,
        "num-envs": script.num_envs,
        "num-steps": script.num_steps,
        "num-minibatches": script.num_minibatches,
        "update-epochs": script.update_epochs,
        "gamma": script.gamma,
        "max-grad-norm": script.max_grad_norm,
        "start-e": script.start_epsilon,
        "end-e": script.final_epsilon,
        "exploration-fraction": script.exploration_fraction,
        "q-lambda": script.q_lambda,
    }
    words = []
    for flag, value in flags.items():
        words += [f"--{flag}", str(value)]
    words.append("--cuda" if args.device == "cuda" else "--no-cuda")
    return words


# ---- turns and numbers -------------------------------------------------------------------------


def measure(args: Args, name: str, folder: Path) -> dict:
    """All variants of one algorithm: {"turn_steps", "script": its flags, "variants": {variant: its
    numbers}}."""
    script = script_args(args, name, folder)
    turn_steps = args.turn_steps or TURN_STEPS[name]
    if args.quick and not args.turn_steps:
        turn_steps = iteration_steps(script)
    if turn_steps % iteration_steps(script):
        flag = f"--turn-steps {turn_steps}"
        problem = f"must be a multiple of {iteration_steps(script)}, an iteration of {name}"
        raise runlog.UserError(f"{flag}: {problem}")

    variants = start_variants(args, name, script, folder)
    try:
        about = {}
        for variant in variants:
            about[variant.name] = variant.answer()
            print(f"{name}: {variant.name} is ready", flush=True)
        turns = {variant.name: [] for variant in variants}
        for number in range(args.rounds):
            order = variants if number % 2 == 0 else variants[::-1]
            for variant in order:
                turns[variant.name].append(variant.play(turn_steps))
            print(f"{name}: round {number + 1} of {args.rounds}", flush=True)
    finally:
        for variant in variants:
            variant.end()
    flags = dataclasses.asdict(script)
    del flags["runs_dir"]
    return {"turn_steps": turn_steps, "script": flags, "variants": summarise(turns, about)}


def summarise(turns: dict[str, list[dict]], about: dict[str, dict]) -> dict[str, dict]:
    """Medians over rounds, and the turns themselves.

    ours_over_it: the ratio of the speeds within a round. cpu_ms_per_step: of all threads, so
    that waiting for a core does not count. idle_cpu: the fraction of one core that a variant used
    while it should have slept.
    """
    speeds = {}
    for name, answers in turns.items():
        speeds[name] = np.array([answer["steps"] / answer["seconds"] for answer in answers])
    summary = {}
    for name, answers in turns.items():
        ratios = speeds["ours"] / speeds[name]
        cpu_ms = [1e3 * answer["cpu_seconds"] / answer["steps"] for answer in answers]
        idle_cpu_seconds = sum(answer["idle_cpu_seconds"] for answer in answers)
        idle_seconds = sum(answer["idle_seconds"] for answer in answers)
        summary[name] = {
            "steps_per_second": float(np.median(speeds[name])),
            "ours_over_it": float(np.median(ratios)),
            "cpu_ms_per_step": float(np.median(cpu_ms)),
            "speeds": speeds[name].tolist(),
            "ratios": ratios.tolist(),
            "idle_cpu": idle_cpu_seconds / idle_seconds,
            "turns": answers,
        }
        summary[name] |= about[name]
    return summary


def table(results: dict[str, dict]) -> list[str]:
    """Lines of Markdown."""
    lines = ["| | | steps/s | ours over it | CPU ms per step | CPU while it sleeps | |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, result in results.items():
        for variant, numbers in result["variants"].items():
            speeds = numbers["speeds"]
            ratios = numbers["ratios"]
            versions = [f"{package} {v}" for package, v in numbers["versions"].items()]
            cells = [
                name,
                variant,
                f"{numbers['steps_per_second']:,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f})",
                f"{numbers['ours_over_it']:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                f"{numbers['cpu_ms_per_step']:.2f}",
                f"{100 * numbers['idle_cpu']:.1f} %",
                ", ".join(versions),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


# ---- flags -------------------------------------------------------------------------------------


def validate(args: Args) -> None:
    """Raises UserError (flag, value, remedy) before anything is started."""
    runlog.check_range(args, "[1, inf)", "rounds")
    runlog.check_range(args, "[0, inf)", "turn_steps threads env_threads compete")
    runlog.find_device(args.device)
    if args.cleanrl and not args.cleanrl.is_file():
        raise runlog.UserError(f"--cleanrl {args.cleanrl}: no such file; download {CLEANRL_URL}")
    if args.jax and shutil.which(args.jax) is None:
        raise runlog.UserError(f"--jax {args.jax}: no such program; --help says how to make it")
    if os.environ.get("OMP_WAIT_POLICY", "").lower() == "active":
        problem = "threads of those whose turn it is not would keep the cores busy; unset it"
        raise runlog.UserError(f"OMP_WAIT_POLICY=active: {problem}")


def main(args: Args) -> None:
    validate(args)
    if args.pin:
        os.sched_setaffinity(0, args.pin)  # whatever it starts stays there too
    from benchmarks.sac_updates import competitors

    results = {}
    for name in args.algorithms:
        with tempfile.TemporaryDirectory() as folder, competitors(args.compete):
            results[name] = measure(args, name, Path(folder))
    print("\n".join(table(results)))
    if args.out:
        content = hardware.machine() | {"results": results}
        if args.cleanrl:
            content["cleanrl_sha256"] = hashlib.sha256(args.cleanrl.read_bytes()).hexdigest()
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    with runlog.exit_on_user_error():
        main(runlog.parse_args(Args))
