"""Trainings that play when they are asked to, so that several can be timed in turns."""

import importlib.metadata
import json
import os
import sys
import time


class Turns:
    """Lets a training go on for a number of steps, whenever a line on stdin asks for it, and
    answers on stdout how long they took.

    The training calls `before_step` before each step of its games, and is held there between
    turns. A turn that has whole iterations thus has all their work, wherever in an iteration it
    begins: acting, games, learning. Each answer is a line of JSON; whatever else the process prints
    on stdout is dropped.

    num_envs: games of a step. warm_up: environment steps of all games before the first turn.
    packages: whose versions the first answer has, beside `about`.
    """

    def __init__(self, num_envs: int, warm_up: int, packages: tuple[str, ...], **about):
        self.answers = os.fdopen(os.dup(1), "w")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        self.num_envs = num_envs
        self.steps_left = warm_up // num_envs
        versions = {name: importlib.metadata.version(name) for name in packages}
        self.answer = {"ready": True, "versions": versions} | about
        self.steps = 0  # environment steps of this turn
        self.started = None  # when it began
        self.cpu_started = None  # CPU seconds of all threads until then

    def before_step(self) -> None:
        if self.steps_left == 0:
            self.wait()
        self.steps_left -= 1

    def wait(self) -> None:
        """Answers for the turn that is over, and waits for the next: environment steps on stdin."""
        if self.started is not None:
            seconds = time.perf_counter() - self.started
            cpu_seconds = time.process_time() - self.cpu_started
            self.answer |= {"steps": self.steps, "seconds": seconds, "cpu_seconds": cpu_seconds}
        print(json.dumps(self.answer), file=self.answers, flush=True)

        began = time.perf_counter()
        busy_before = time.process_time()
        line = sys.stdin.readline()
        if not line:  # whoever asked is gone; nothing is worth saving
            os._exit(0)
        idle_seconds = time.perf_counter() - began
        self.cpu_started = time.process_time()
        idle_cpu_seconds = self.cpu_started - busy_before  # of threads that did not sleep
        self.answer = {"idle_seconds": idle_seconds, "idle_cpu_seconds": idle_cpu_seconds}
        self.steps = int(line)
        self.steps_left = self.steps // self.num_envs
        self.started = time.perf_counter()


def hold(games, turns: Turns):
    """The same games, whose `step` waits for its turn."""
    play = games.step

    def step(actions):
        turns.before_step()
        return play(actions)

    games.step = step
    return games
