"""What benchmarks/gpu.py measures: one job in a process of its own, `python benchmarks/gpu_parts.py
SPEC.json`.

A job prepares (imports, compiles, warms up), then calls `gate`, which reports that it is ready and
waits for its turn: so jobs compile at the same time and are measured one after the other.
Measurements go to the result's file at once, so that a job that fails or hangs later keeps
them.
"""

import collections
import dataclasses
import functools
import importlib
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
import torch.nn as nn  # noqa: E402
import torch.nn.functional as F  # noqa: E402

OBS_DIM = 17  # those of cheetah-run
ACTION_DIM = 6
READY = "benchmark: ready"  # a line on stdout


@dataclasses.dataclass
class Sizes:
    """How much is measured; the defaults are those of the table, `quick` is for trying the code."""

    widths: tuple[int, ...] = (256, 256)
    batch_size: int = 256
    utd: int = 10
    replay: int = 100_000  # transitions of each seed
    seconds: float = 1.0  # of a measurement, in three rounds
    learning_starts: int = 300
    loop_steps: int = 400  # environment steps, or fewer in loop_seconds
    loop_seconds: float = 6.0
    atari_seconds: float = 3.0
    atari_envs: int | None = None  # None: the script's default
    atari_steps: int | None = None  # the same, of each game between updates
    dqn_starts: int = 2_000
    dqn_warm_up: int = 400
    rational_batches: tuple[int, ...] = (256, 16_384)  # as in an update; more than the caches hold


def quick_sizes() -> Sizes:
    return Sizes(
        widths=(32, 32),
        batch_size=16,
        utd=2,
        replay=1_000,
        seconds=0.03,
        learning_starts=20,
        loop_steps=5,
        loop_seconds=1.0,
        atari_seconds=0.2,
        atari_envs=4,
        atari_steps=8,
        dqn_starts=100,
        dqn_warm_up=20,
        rational_batches=(16,),
    )


class Job:
    """What a part gets: device, sizes, whether to compile, and where its rows go."""

    def __init__(self, spec: dict):
        self.device = torch.device(spec["device"])
        self.compile = spec["compile"]
        self.cores = spec["cores"]
        self.sizes = quick_sizes() if spec["quick"] else Sizes()
        self.folder = Path(spec["folder"])
        self.spec = spec
        self.result = {"rows": []}

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def note(self, **values) -> None:
        """Adds to the result, beside the rows."""
        self.result |= values
        self._write()

    def row(self, **values) -> None:
        """Adds a row of the table."""
        self.result["rows"].append(values)
        self._write()

    def _write(self) -> None:
        temporary = self.folder / "result.tmp"
        temporary.write_text(json.dumps(self.result, default=str))
        os.replace(temporary, self.folder / "result.json")

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()


def gate() -> None:
    """Prints READY and waits for the turn. Without a parent (end of input) the process ends."""
    print(READY, flush=True)
    if not sys.stdin.readline():
        os._exit(1)


def seconds_of(job: Job, run: Callable[[], object]) -> float:
    """Median seconds of one call, over three rounds of many calls each; the device is synchronised
    at both ends."""
    run()
    job.synchronize()
    start = time.perf_counter()
    run()
    job.synchronize()
    once = time.perf_counter() - start
    calls = max(1, math.ceil(job.sizes.seconds / 3 / max(once, 1e-7)))
    calls = min(calls, 100_000)
    rounds = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(calls):
            run()
        job.synchronize()
        rounds.append((time.perf_counter() - start) / calls)
    return statistics.median(rounds)


def captured(job: Job, run: Callable[[], object], times: int) -> Callable[[], object]:
    """`times` calls of run as one CUDA graph; on the CPU, the calls themselves."""

    def calls():
        for _ in range(times):
            run()

    if not job.is_cuda:
        return calls
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        calls()
    return graph.replay


def peak_mb(job: Job) -> float | None:
    return round(torch.cuda.max_memory_allocated() / 2**20, 1) if job.is_cuda else None


def error_text(error: Exception) -> str:
    lines = f"{type(error).__name__}: {error}".strip().splitlines()
    return " | ".join(lines[:5])[:600]


# ---- SAC updates ---------------------------------------------------------------------------------


def sac_parts(job: Job, activation: str, num_seeds: int) -> tuple:
    """An agent, a full replay of random transitions, and the generators of its seeds."""
    import sac_continuous as sac
    from runlog import seeding

    sizes = job.sizes
    args = sac.Args(
        activation=activation,
        widths=sizes.widths,
        batch_size=sizes.batch_size,
        utd=sizes.utd,
        compile=job.compile,
    )
    seeds = list(range(1, num_seeds + 1))
    agent = sac.Agent(OBS_DIM, ACTION_DIM, args, seeds, job.device)
    buffer = sac.ReplayBuffer(num_seeds, sizes.replay, OBS_DIM, ACTION_DIM, job.device)
    buffer.rows.normal_()
    buffer.rows[..., OBS_DIM + ACTION_DIM + 1] = 0.0  # terminations
    buffer.num_added = sizes.replay
    generators = seeding.make_generators(seeds, "update", device=job.device)
    return agent, buffer, generators


def block_of(update: Callable, utd: int) -> Callable:
    """The updates of one environment step, as in sac_continuous.train."""

    def block(batches: dict[str, torch.Tensor], noise: torch.Tensor) -> dict[str, torch.Tensor]:
        info = {}
        for u in range(utd):
            batch = {name: part[u] for name, part in batches.items()}
            info |= update(batch, noise[u], True)
        return info

    return block


def updates(job: Job, activation: str, num_seeds: int) -> None:
    """Whole updates, drawing included, in blocks of the UTD ratio: compiled, as one CUDA graph, and
    eager."""
    from runlog import cudagraphs, seeding

    sizes = job.sizes
    started = time.perf_counter()
    agent, buffer, generators = sac_parts(job, activation, num_seeds)

    def draw() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        batches = buffer.sample(sizes.utd, sizes.batch_size, generators=generators)
        shape = (sizes.utd, 2, sizes.batch_size, ACTION_DIM)
        return batches, seeding.normals(generators, *shape, axis=2)

    kept = draw()
    compiled = block_of(agent.update, sizes.utd)
    compiled(*kept)
    job.synchronize()
    first_call = time.perf_counter() - started
    replay_mb = round(buffer.rows.numel() * 4 / 2**20, 1)
    job.note(first_call_s=round(first_call, 2), replay_mb=replay_mb)
    gate()

    def measure(mode: str, make_block: Callable) -> None:
        try:
            if job.is_cuda:
                torch.cuda.reset_peak_memory_stats()
            block = make_block()
            for _ in range(5):  # a graph is captured in the fourth
                block(*draw())
            peak = peak_mb(job)
            whole = seconds_of(job, lambda: block(*draw()))
            alone = seconds_of(job, lambda: block(*kept))
        except Exception as error:
            job.row(activation=activation, seeds=num_seeds, mode=mode, error=error_text(error))
            return
        job.row(
            activation=activation,
            seeds=num_seeds,
            mode=mode,
            ms_per_update=1e3 * whole / sizes.utd,
            seed_updates_per_s=num_seeds * sizes.utd / whole,
            without_drawing_per_s=num_seeds * sizes.utd / alone,
            peak_mb=peak,
        )

    measure("compiled" if job.compile else "not compiled", lambda: compiled)
    measure("eager", lambda: block_of(agent.one_update, sizes.utd))
    if job.is_cuda:  # last: after a failed capture the process may be unable to continue
        measure("cudagraphs", lambda: cudagraphs.graphed(block_of(agent.update, sizes.utd)))
    gate()
    batch = {name: part[0] for name, part in kept[0].items()}
    job.note(
        kernels_compiled=count_kernels(job, lambda: agent.update(batch, kept[1][0], True)),
        kernels_eager=count_kernels(job, lambda: agent.one_update(batch, kept[1][0], True)),
    )


def sac_block(job: Job, activation: str, num_seeds: int) -> Callable:
    """A UTD block of compiled updates with its sampling, as sac_continuous.py makes it: on a GPU as
    a CUDA graph. It has been warmed up."""
    from runlog import cudagraphs, seeding

    sizes = job.sizes
    agent, buffer, generators = sac_parts(job, activation, num_seeds)
    block = block_of(agent.update, sizes.utd)
    if job.is_cuda:
        block = cudagraphs.graphed(block)

    def run() -> None:
        batches = buffer.sample(sizes.utd, sizes.batch_size, generators=generators)
        shape = (sizes.utd, 2, sizes.batch_size, ACTION_DIM)
        block(batches, seeding.normals(generators, *shape, axis=2))

    for _ in range(5):  # a graph is captured in the fourth
        run()
    job.synchronize()
    return run


def contention(job: Job, activation: str, num_seeds: int) -> None:
    """Updates alone, and while another process makes the same updates on the same device."""
    run = sac_block(job, activation, num_seeds)
    folder = job.folder / "other"
    folder.mkdir()
    spec = job.spec | {"part": "contender", "folder": str(folder)}
    (folder / "spec.json").write_text(json.dumps(spec))
    other = subprocess.Popen(
        [sys.executable, __file__, str(folder / "spec.json")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    while READY not in other.stdout.readline():
        if other.poll() is not None:
            sys.exit(f"the other process ended with code {other.returncode}")
    gate()

    def report(processes: int) -> None:
        seconds = seconds_of(job, run) / job.sizes.utd
        job.row(
            activation=activation,
            seeds=num_seeds,
            processes=processes,
            ms_per_update=1e3 * seconds,
            seed_updates_per_s_of_each=num_seeds / seconds,
        )

    report(1)
    other.stdin.write("go\n")
    other.stdin.flush()
    time.sleep(0.2)
    report(2)
    other.kill()


def contender(job: Job, activation: str, num_seeds: int) -> None:
    """The other process of `contention`: updates until it is killed."""
    run = sac_block(job, activation, num_seeds)
    gate()
    end = time.monotonic() + 60
    while time.monotonic() < end:
        run()
        job.synchronize()


def count_kernels(job: Job, run: Callable[[], object]) -> dict:
    """Kernels of one call, their time, and the longest; on the CPU, operators instead of
    kernels."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    activity = ProfilerActivity.CUDA if job.is_cuda else ProfilerActivity.CPU
    kind = DeviceType.CUDA if job.is_cuda else DeviceType.CPU
    with profile(activities=[activity]) as profiler:
        run()
        job.synchronize()
    count = 0
    total = 0.0
    microseconds = collections.Counter()
    for event in profiler.events():
        if event.device_type != kind or event.name.startswith(("Memcpy", "Memset")):
            continue
        count += 1
        total += event.time_range.elapsed_us()
        microseconds[event.name[:90]] += event.time_range.elapsed_us()
    longest = {name: round(value, 1) for name, value in microseconds.most_common(12)}
    return {"count": count, "microseconds": round(total, 1), "longest": longest}


def floor(job: Job, seeds: list[int]) -> None:
    """The matrix products of one update and nothing else, one by one and as a graph of a UTD block,
    and with TF32."""
    import sac_updates

    import sac_continuous as sac

    args = sac.Args(widths=job.sizes.widths, batch_size=job.sizes.batch_size)
    gate()
    for num_seeds in seeds:
        for branches in (1, 2):
            for precision in ("float32", "TF32"):
                torch.backends.cuda.matmul.allow_tf32 = precision == "TF32"
                run = sac_updates.floor(num_seeds, args, branches, job.device)
                launched = seconds_of(job, run)
                graph = captured(job, run, job.sizes.utd)
                in_graph = seconds_of(job, graph) / job.sizes.utd
                job.row(
                    seeds=num_seeds,
                    branches=branches,
                    precision=precision,
                    ms_per_update=1e3 * launched,
                    ms_in_graph=1e3 * in_graph,
                    seed_updates_per_s=num_seeds / launched,
                    in_graph_per_s=num_seeds / in_graph,
                )


def rational(job: Job, num_seeds: int) -> None:
    """Memory bandwidth of activations alone, forward and backward, against a copy on the device."""
    import activations

    torch._dynamo.config.trace_autograd_ops = True  # torch.autograd.grad inside a compiled function
    torch._dynamo.config.recompile_limit = 64
    compiled = functools.partial(torch.compile, dynamic=False, disable=not job.compile)
    units = job.sizes.widths[-1]
    config = activations.RationalConfig()
    modules = {
        "relu": nn.ReLU(),
        "rational": activations.Rational(config, False, (num_seeds, 2)).to(job.device),
        "crational": activations.Rational(config, True, (num_seeds, 2)).to(job.device),
    }
    runs = {}
    for batch_size in job.sizes.rational_batches:
        x = torch.randn(num_seeds, 2, batch_size, units, device=job.device, requires_grad=True)
        grad = torch.randn_like(x)
        out = torch.empty_like(x)
        runs[batch_size, "copy", "-", 2 * x.numel()] = functools.partial(out.copy_, x.detach())
        for name, module in modules.items():
            forward, backward = activation_passes(compiled, module, x, grad)
            forward()
            backward()
            # forward reads x and writes y; backward reads x and dL/dy and writes dL/dx
            runs[batch_size, name, "forward", 2 * x.numel()] = forward
            runs[batch_size, name, "backward", 3 * x.numel()] = backward
    gate()
    copied = {}
    for (batch_size, name, direction, moved), run in runs.items():
        seconds = seconds_of(job, captured(job, run, 10)) / 10
        gigabytes = 4 * moved / seconds / 1e9
        if name == "copy":
            copied[batch_size] = gigabytes
        job.row(
            shape=f"{num_seeds} x 2 x {batch_size} x {units}",
            activation=name,
            direction=direction,
            microseconds=1e6 * seconds,
            elements_per_s=num_seeds * 2 * batch_size * units / seconds,
            gb_per_s=gigabytes,
            share_of_copy=gigabytes / copied[batch_size],
        )


def activation_passes(
    compiled: Callable, module: nn.Module, x: torch.Tensor, grad: torch.Tensor
) -> tuple:
    parameters = list(module.parameters())

    def forward_of(x):
        with torch.no_grad():
            return module(x)

    def backward_of(x, grad):
        return torch.autograd.grad(module(x), [x, *parameters], grad)

    forward = functools.partial(compiled(forward_of), x.detach())
    backward = functools.partial(compiled(backward_of), x, grad)
    return forward, backward


def random(job: Job, seeds: list[int]) -> None:
    """Drawing the batches and noise of a UTD block: a generator for each seed against one for all;
    and acting."""
    from runlog import seeding

    sizes = job.sizes
    shape = (sizes.utd, sizes.batch_size)
    prepared = {num_seeds: sac_parts(job, "crational", num_seeds) for num_seeds in seeds}
    observations = {num_seeds: torch.randn(num_seeds, OBS_DIM).numpy() for num_seeds in seeds}
    acting = [num_seeds for num_seeds in seeds if num_seeds <= 10]
    for num_seeds in acting:
        agent, _, generators = prepared[num_seeds]
        agent.act(observations[num_seeds], generators)
    gate()

    def report(num_seeds: int, what: str, run: Callable[[], object]) -> None:
        job.row(seeds=num_seeds, what=what, ms=1e3 * seconds_of(job, run))

    for num_seeds in acting:
        agent, _, generators = prepared[num_seeds]
        obs = observations[num_seeds]
        report(num_seeds, "act, as in training", functools.partial(agent.act, obs, generators))
        compiled_sample = agent.sample
        agent.sample = agent.actor.sample
        report(num_seeds, "act, eager", functools.partial(agent.act, obs, generators))
        agent.sample = compiled_sample
    for num_seeds in seeds:
        _, buffer, generators = prepared[num_seeds]
        one = generators[0]
        many = (sizes.utd, num_seeds, sizes.batch_size)
        draw = functools.partial(torch.randint, sizes.replay, generator=one, device=job.device)
        index = draw(many)

        def indices(generators=generators):
            parts = [
                torch.randint(sizes.replay, shape, generator=g, device=g.device) for g in generators
            ]
            return torch.stack(parts, -2)

        def gather(buffer=buffer, index=index):
            return buffer.rows[buffer.seed_index, index]

        noise = functools.partial(
            seeding.normals, generators, sizes.utd, 2, sizes.batch_size, ACTION_DIM, axis=2
        )
        of_all = (sizes.utd, 2, num_seeds, sizes.batch_size, ACTION_DIM)
        one_noise = functools.partial(torch.randn, of_all, generator=one, device=job.device)
        sample = functools.partial(buffer.sample, *shape, generators=generators)
        report(num_seeds, "indices, a generator per seed", indices)
        report(num_seeds, "indices, one call", functools.partial(draw, many))
        report(num_seeds, "gather alone", gather)
        report(num_seeds, "ReplayBuffer.sample, as in training", sample)
        report(num_seeds, "noise, a generator per seed, as in training", noise)
        report(num_seeds, "noise, one call", one_noise)


# ---- peers ---------------------------------------------------------------------------------------


class PlainActor(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(OBS_DIM, width)
        self.fc2 = nn.Linear(width, width)
        self.mean = nn.Linear(width, ACTION_DIM)
        self.log_std = nn.Linear(width, ACTION_DIM)

    def sample(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.relu(self.fc1(obs))
        x = F.relu(self.fc2(x))
        std = (-5 + 3.5 * (torch.tanh(self.log_std(x)) + 1)).exp()  # log-std in [-5, 2]
        normal = torch.distributions.Normal(self.mean(x), std)
        unsquashed = normal.rsample()
        actions = torch.tanh(unsquashed)
        log_prob = normal.log_prob(unsquashed) - torch.log(1 - actions.square() + 1e-6)
        return actions, log_prob.sum(1, keepdim=True)


class PlainCritic(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(OBS_DIM + ACTION_DIM, width)
        self.fc2 = nn.Linear(width, width)
        self.q = nn.Linear(width, 1)

    def forward(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.fc1(torch.cat([obs, actions], 1)))
        return self.q(F.relu(self.fc2(x)))


class PlainSAC:
    """SAC of one seed as single-file scripts write it: nn.Linear, torch.optim.Adam, a loop over the
    targets."""

    def __init__(self, width: int, device: torch.device):
        self.actor = PlainActor(width).to(device)
        self.critics = [PlainCritic(width).to(device) for _ in range(2)]
        self.targets = [PlainCritic(width).to(device) for _ in range(2)]
        for critic, target in zip(self.critics, self.targets):
            target.load_state_dict(critic.state_dict())
        self.log_alpha = torch.zeros(1, requires_grad=True, device=device)
        self.alpha = 1.0
        parameters = [*self.critics[0].parameters(), *self.critics[1].parameters()]
        self.critic_optimizer = torch.optim.Adam(parameters, lr=3e-4)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=3e-4)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=3e-4)

    def update(self, obs, actions, rewards, terminations, next_obs) -> None:
        with torch.no_grad():
            next_actions, next_log_prob = self.actor.sample(next_obs)
            next_q = torch.min(*(target(next_obs, next_actions) for target in self.targets))
            next_value = next_q - self.alpha * next_log_prob
            target_q = rewards + 0.99 * (1 - terminations) * next_value
        losses = [F.mse_loss(critic(obs, actions), target_q) for critic in self.critics]
        self.critic_optimizer.zero_grad()
        (losses[0] + losses[1]).backward()
        self.critic_optimizer.step()

        new_actions, log_prob = self.actor.sample(obs)
        q = torch.min(*(critic(obs, new_actions) for critic in self.critics))
        actor_loss = (self.alpha * log_prob - q).mean()
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        self.actor_optimizer.step()

        alpha_loss = (-self.log_alpha.exp() * (log_prob.detach() - ACTION_DIM)).mean()
        self.alpha_optimizer.zero_grad()
        alpha_loss.backward()
        self.alpha_optimizer.step()
        self.alpha = self.log_alpha.exp().item()

        for critic, target in zip(self.critics, self.targets):
            for parameter, target_parameter in zip(critic.parameters(), target.parameters()):
                target_parameter.data.copy_(0.005 * parameter.data + 0.995 * target_parameter.data)


def plain(job: Job) -> None:
    """PlainSAC, with batches drawn from arrays on the host, and with one batch that is on the
    device."""
    import numpy as np

    sizes = job.sizes
    columns = (OBS_DIM, ACTION_DIM, 1, 1, OBS_DIM)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((sizes.replay, column), dtype=np.float32) for column in columns]
    arrays[3][:] = 0.0  # terminations
    learner = PlainSAC(sizes.widths[-1], job.device)

    def draw() -> list[torch.Tensor]:
        index = rng.integers(sizes.replay, size=sizes.batch_size)
        return [torch.from_numpy(array[index]).to(job.device) for array in arrays]

    batch = draw()
    gate()
    for what, run in {
        "plain eager SAC, replay on the host": lambda: learner.update(*draw()),
        "plain eager SAC, one batch on the device": lambda: learner.update(*batch),
    }.items():
        for _ in range(3):
            run()
        seconds = seconds_of(job, run)
        job.row(peer=what, ms_per_update=1e3 * seconds, seed_updates_per_s=1 / seconds)
    gate()
    job.note(kernels_eager=count_kernels(job, lambda: learner.update(*batch)))


def sbx(job: Job) -> None:
    """SBX's SAC where it is installed: `train` in blocks of the UTD ratio."""
    if importlib.util.find_spec("sbx") is None:
        job.note(note="SBX is not installed")
        return
    import gymnasium
    import jax
    import numpy as np
    from sbx import SAC

    class Spaces(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-9, 9, (OBS_DIM,), np.float32)
        action_space = gymnasium.spaces.Box(-1, 1, (ACTION_DIM,), np.float32)

        def reset(self, *, seed=None, options=None):
            return self.observation_space.sample(), {}

        def step(self, action):
            return self.observation_space.sample(), 0.1, False, False, {}

    sizes = job.sizes
    policy = {"net_arch": list(sizes.widths)}
    model = SAC(
        "MlpPolicy",
        Spaces(),
        policy_kwargs=policy,
        learning_starts=10_000,
        gradient_steps=sizes.utd,
    )
    model.learn(1_000)

    def run() -> None:
        model.train(gradient_steps=sizes.utd, batch_size=sizes.batch_size)
        jax.block_until_ready(
            model.actor_state.params if hasattr(model, "actor_state") else model.policy.actor_state
        )

    run()
    gate()
    seconds = seconds_of(job, run) / sizes.utd
    peer = f"SBX SAC on {jax.devices()[0]}"
    job.row(peer=peer, ms_per_update=1e3 * seconds, seed_updates_per_s=1 / seconds)


# ---- whole scripts -------------------------------------------------------------------------------


@dataclasses.dataclass
class Window:
    """The part of a script's run that is measured, in calls of a function that each step makes
    once."""

    first: int  # call with which it begins, after the warm-up
    period: int  # its length is a multiple of so many calls
    seconds: float  # it is over after this time,
    max_calls: float = math.inf  # or after so many calls
    calls: int = 0
    start: float = 0.0

    def is_over(self, job: Job) -> bool:
        """To be called at each call; waits for the turn before the window begins."""
        number = self.calls - self.first
        self.calls += 1
        if number < 0:
            return False
        if number == 0:
            job.synchronize()
            gate()
            self.start = time.perf_counter()
            return False
        if number % self.period:
            return False
        elapsed = time.perf_counter() - self.start
        if elapsed < self.seconds and number < self.max_calls:
            return False
        job.synchronize()
        return True

    def measured(self) -> int:
        """Calls since the window began, once it is over."""
        return self.calls - 1 - self.first


def timed(function: Callable, total: collections.Counter, name: str) -> Callable:
    def call(*positional, **named):
        start = time.perf_counter()
        result = function(*positional, **named)
        total[name] += time.perf_counter() - start
        return result

    return call


def loop(job: Job, activation: str, num_seeds: int, async_envs: bool, cudagraphs: bool) -> None:
    """sac_continuous.py on cheetah-run, without evaluation, metrics and checkpoints."""
    import sac_continuous as sac
    from environments import sequences

    sizes = job.sizes
    window = Window(sizes.learning_starts + 10, 1, sizes.loop_seconds, sizes.loop_steps)
    total = collections.Counter()
    make_envs = sequences.make_envs
    add = sac.ReplayBuffer.add

    def make_timed_envs(env_id, seeds, stream, workers):
        if stream != "train":
            return make_envs(env_id, seeds, stream)
        envs = make_envs(env_id, seeds, stream, workers)
        envs.step = timed(envs.step, total, "games")
        return envs

    def counted_add(*positional):
        add(*positional)
        start_before = window.start
        is_over = window.is_over(job)
        if window.start != start_before:
            total.clear()
        if is_over:
            report_loop(job, activation, num_seeds, async_envs, cudagraphs, window, total)
            os._exit(0)

    sequences.make_envs = make_timed_envs
    sac.ReplayBuffer.add = counted_add
    sac.Agent.act = timed(sac.Agent.act, total, "acting")
    never = 10**9
    args = sac.Args(
        device=str(job.device),
        compile=job.compile,
        async_envs=async_envs,
        cudagraphs=cudagraphs,
        activation=activation,
        num_seeds=num_seeds,
        utd=sizes.utd,
        batch_size=sizes.batch_size,
        widths=sizes.widths,
        buffer_size=max(sizes.replay, sizes.batch_size),
        learning_starts=sizes.learning_starts,
        total_timesteps=never,
        eval_frequency=never,
        log_frequency=never,
        checkpoint_frequency=never,
        checkpoint_minutes=0.0,
        metrics_frequency=0,
        ntk_frequency=0,
        tensorboard=False,
        runs_dir=str(job.folder / "runs"),
    )
    sac.main(args)


def report_loop(job, activation, num_seeds, async_envs, cudagraphs, window, total) -> None:
    steps = window.measured()
    elapsed = time.perf_counter() - window.start
    job.row(
        activation=activation,
        seeds=num_seeds,
        async_envs=async_envs,
        cudagraphs=cudagraphs,
        steps_measured=steps,
        ms_per_step=1e3 * elapsed / steps,
        ms_games=1e3 * total["games"] / steps,
        ms_acting=1e3 * total["acting"] / steps,  # includes waiting for the updates before
        seed_steps_per_s=num_seeds * steps / elapsed,
        seed_updates_per_s=num_seeds * steps * job.sizes.utd / elapsed,
    )


def atari(job: Job, algorithm: str, what: str, cudagraphs: bool = False) -> None:
    """An Atari script whole, its learner alone (games that cost nothing), or its games alone."""
    from environments.atari import AtariGames

    module = importlib.import_module(f"{algorithm}_atari")
    benchmark = load_benchmark("atari")
    args = benchmark.Args(
        steps=10**7,
        seconds=job.sizes.atari_seconds,
        num_envs=job.sizes.atari_envs,
        buffer_size=100_000,
        device=str(job.device),
        env_threads=job.cores,
        compile=job.compile,
    )
    if what == "games":
        result = benchmark.env_alone(args, module, algorithm, ready=gate)
        job.row(
            algorithm=algorithm,
            part=what,
            cudagraphs=None,
            envs=result["num_envs"],
            steps_per_s=result["steps_per_second"],
        )
        return
    games_class = AtariGames
    if what == "learner":
        module.make_games = benchmark.FreeGames
        games_class = benchmark.FreeGames
    script = benchmark.script_args(args, module, cudagraphs=cudagraphs)
    if algorithm == "dqn":
        script = dataclasses.replace(script, learning_starts=job.sizes.dqn_starts)
        # its file has room for two checkpoint intervals
        script = dataclasses.replace(script, checkpoint_frequency=50_000)
        warm_up = (script.learning_starts + job.sizes.dqn_warm_up) // script.num_envs
        period = max(script.train_frequency // script.num_envs, 1)
    else:
        if job.sizes.atari_steps:
            script = dataclasses.replace(script, num_steps=job.sizes.atari_steps, num_minibatches=2)
        warm_up = 3 * script.num_steps
        period = script.num_steps
    window = Window(warm_up, period, job.sizes.atari_seconds)
    step = games_class.step

    def counted_step(games, actions):
        if window.is_over(job):
            rate = window.measured() * script.num_envs / (time.perf_counter() - window.start)
            job.row(
                algorithm=algorithm,
                part=what,
                cudagraphs=cudagraphs,
                envs=script.num_envs,
                steps_per_s=rate,
            )
            os._exit(0)
        return step(games, actions)

    games_class.step = counted_step
    module.main(script)


def load_benchmark(name: str):
    """A module of benchmarks/."""
    spec = importlib.util.spec_from_file_location(
        f"benchmarks_{name}", ROOT / "benchmarks" / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


PARTS = {
    "updates": updates,
    "contention": contention,
    "contender": contender,
    "floor": floor,
    "rational": rational,
    "random": random,
    "plain": plain,
    "sbx": sbx,
    "loop": loop,
    "atari": atari,
}


def main(path: str) -> None:
    spec = json.loads(Path(path).read_text())
    job = Job(spec)
    started = time.time()
    torch.set_num_threads(spec["threads"])
    if job.is_cuda:
        torch.zeros(1, device=job.device)  # fails at once where there is none
    job.note(seconds_to_import=round(time.time() - started, 2))
    PARTS[spec["part"]](job, **spec["options"])
    sys.stdout.flush()
    os._exit(0)  # whatever libraries do at the end of a process cannot hang it


if __name__ == "__main__":
    main(sys.argv[1])
