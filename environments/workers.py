"""Environments in worker processes (`--async-envs`) that leave signals, errors and their
termination to the parent."""

import contextlib
import multiprocessing
import multiprocessing.util
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import gymnasium
import numpy as np
from gymnasium.vector.utils import write_to_shared_memory

import runlog
from runlog.stopping import SIGNALS

END_SECONDS = 5  # for a worker to finish a step and close its environment before it is killed


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Processes started inside inherit the signal mask, so that no signal reaches a worker before
    it ignores them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    adopted = os.getppid()
    while parent.is_alive() and os.getppid() == adopted:
        time.sleep(0.5)
    os._exit(1)


def _worker(
    index, env_fn, pipe, parent_pipe, shared_memory, errors, autoreset_mode, semaphore
) -> None:
    """The main function of a worker process: gymnasium's protocol with SAME_STEP. An error is sent
    to the parent as one line, after which the worker waits for the next command. It ends when the
    pipe closes, or when the parent has died."""
    # signals reach the whole process group, but the parent decides when its workers end
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    parent_pipe.close()
    try:
        env = env_fn()
    except Exception as error:
        env = None
        failure = error
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            command, data = pipe.recv()
            if command == "close":
                break
            try:
                if env is None:
                    raise failure
                answer = _answer(env, command, data, index, shared_memory)
            except Exception as error:
                errors.put((index, None, str(error), None))
                pipe.send((None, False))
            else:
                pipe.send((answer, True))
    if env is not None:
        with contextlib.suppress(Exception):
            env.close()


def _answer(env: gymnasium.Env, command: str, data, index: int, shared_memory):
    if command == "reset":
        obs, info = env.reset(**data)
        write_to_shared_memory(env.observation_space, index, obs, shared_memory)
        return None, info
    if command == "step":
        obs, reward, terminated, truncated, info = env.step(data)
        if terminated or truncated:
            last_obs = obs
            last_info = info
            obs, info = env.reset()
            info = {"final_info": last_info, "final_obs": last_obs, **info}
        write_to_shared_memory(env.observation_space, index, obs, shared_memory)
        return None, reward, terminated, truncated, info
    if command == "_check_spaces":
        _, observation_space, action_space = data
        return observation_space == env.observation_space, action_space == env.action_space
    if command == "_call":
        name, args, kwargs = data
        attribute = env.get_wrapper_attr(name)
        return attribute(*args, **kwargs) if callable(attribute) else attribute
    if command == "_setattr":
        return env.set_wrapper_attr(*data)
    raise ValueError(f"unknown command {command}")


def _end(pipes: list, processes: list) -> None:
    """Asks the workers to end and kills those that do not."""
    for pipe in pipes:
        with contextlib.suppress(OSError, ValueError):
            pipe.send(("close", None))
        with contextlib.suppress(OSError):
            pipe.close()
    deadline = time.monotonic() + END_SECONDS
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


class WorkerEnvs(gymnasium.vector.AsyncVectorEnv):
    """AsyncVectorEnv whose workers ignore signals to the process group and die with their parent,
    and whose errors are one line. names: of the environments in that line. `reset` and `step` raise
    UserError if an environment has failed for good (EpisodeSeeds), or its process has died."""

    def __init__(self, env_fns: Sequence[Callable], names: Sequence[str]):
        self.names = names
        mode = gymnasium.vector.AutoresetMode.SAME_STEP
        self.parent_pipes = []
        self.processes = []
        try:
            with _signals_held_back(), self._report_deaths():
                super().__init__(env_fns, autoreset_mode=mode, worker=_worker)
        except BaseException:
            _end(self.parent_pipes, self.processes)
            raise
        # before multiprocessing ends, which would send SIGTERM and wait forever
        ends = (self.parent_pipes, self.processes)
        multiprocessing.util.Finalize(self, _end, ends, exitpriority=10)

    def reset(self, **kwargs):
        with self._report_deaths():
            return super().reset(**kwargs)

    def step(self, actions: np.ndarray):
        with self._report_deaths():
            return super().step(actions)

    def close_extras(self, **kwargs) -> None:
        _end(self.parent_pipes, self.processes)

    @contextlib.contextmanager
    def _report_deaths(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, ConnectionError):
            remedy = "start the same command again, without --async-envs to see more"
            for name, process in zip(self.names, self.processes):
                process.join(0.5)
                code = process.exitcode
                if code is not None:
                    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
                    problem = f"its process has ended ({how}); start the same command again"
                    raise runlog.UserError(f"{name}: {problem}") from None
            problem = f"its process has ended; {remedy}"
            raise runlog.UserError(f"{self.names[0]}: {problem}") from None

    def _raise_if_errors(self, successes: Sequence[bool]) -> None:
        failed = [self._next_error() for success in successes if not success]
        if failed:
            raise runlog.UserError(failed[0])

    def _next_error(self) -> str:
        index, _, text, _ = self.error_queue.get()
        return text if "--env-id" in text else f"{self.names[index]}: {text}"
