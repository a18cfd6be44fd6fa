"""A stand-in for a training script in the tests of sweeps: starts at once, and records its steps.

Its folder has the name, the lock and the meta.json that runlog would give it. Every step appends
"step pid" to steps.txt, which nothing ever shortens: so a test sees steps done twice, two processes
at once, starts from zero. As the training scripts do, asked to stop by SIGINT, SIGTERM or SIGHUP it
finishes its step, saves, and exits with 128 + the signal's number; a second signal, more than a
second later, ends it at once; what was ignored at its start stays so.
"""

import argparse
import dataclasses
import fcntl
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path


@dataclasses.dataclass
class Args:
    seed: int = 1
    env_id: str = "toy"
    activation: str = "relu"
    total: int = 5
    pause: float = 0.0  # seconds per step
    crash_at: int = 0  # dies at this step, once
    stop_pause: float = 0.0  # seconds to save after it has been asked to stop
    save_every: int = 1  # steps between checkpoints; a stop saves too
    fail: int = 0  # exit code at the first step, always
    gpu_file: str = ""  # appends CUDA_VISIBLE_DEVICES and OMP_NUM_THREADS to it
    runs_dir: str = "runs"
    fresh: bool = False


def folder(args: Args) -> Path:
    kept = {
        key: value
        for key, value in dataclasses.asdict(args).items()
        if key not in ("runs_dir", "fresh")
    }
    digest = hashlib.sha256(
        json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()[:10]
    return (
        Path(args.runs_dir)
        / f"{args.env_id}__toy_training__{args.activation}__s{args.seed}__{digest}"
    )


def runs_of(args: Args) -> list:
    """Called by the sweep; a training does not import runlog, which takes seconds."""
    import runlog

    exclude = ("runs_dir", "fresh")
    config = dataclasses.asdict(args)
    return [runlog.Run(args.runs_dir, folder(args).name, config, exclude=exclude, fresh=args.fresh)]


stops = []


def note_stop(number: int, frame) -> None:
    if stops and time.monotonic() < stops[0][1] + 1:
        # From Slurm, say, which signals every process of a job, and from the sweep's task,
        # which passes it on.
        return
    if stops:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    stops.append((number, time.monotonic()))


def main(args: Args) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, note_stop)
    run = folder(args)
    run.mkdir(parents=True, exist_ok=True)
    lock = open(run / ".lock", "a+")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(2)
    lock.truncate(0)
    print(os.getpid(), end="", file=lock, flush=True)
    (run / "meta.json").write_text('{"status": "running"}')
    checkpoint = run / "checkpoint"
    step = int(checkpoint.read_text()) if checkpoint.exists() else 0
    if args.gpu_file:
        with open(args.gpu_file, "a") as file:
            print(
                os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("OMP_NUM_THREADS"), file=file
            )
    with open(run / "steps.txt", "a") as steps:
        while step < args.total:
            step += 1
            print(step, os.getpid(), file=steps, flush=True)
            # Before the checkpoint: else the run would be through after
            # as many attempts as it has steps.
            if args.fail:
                print("this is the end", flush=True)
                sys.exit(args.fail)
            # Asked once in each step: a signal that comes after it is the next step's.
            is_stopping = bool(stops)
            if is_stopping:
                time.sleep(args.stop_pause)
            if is_stopping or step % args.save_every == 0 or step == args.total:
                temp = checkpoint.with_name("checkpoint.tmp")
                temp.write_text(str(step))
                os.replace(temp, checkpoint)
            print(f"step {step}", flush=True)
            if step == args.crash_at:
                os.abort()
            if is_stopping:
                (run / "meta.json").write_text('{"status": "interrupted"}')
                print(
                    f"stopped by signal {stops[0][0]} at step {step}, saved: {run}", file=sys.stderr
                )
                sys.exit(128 + stops[0][0])
            time.sleep(args.pause)
    with open(run / "finished.txt", "a") as file:
        print(os.getpid(), file=file)
    (run / "meta.json").write_text('{"status": "finished"}')


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for field in dataclasses.fields(Args):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=field.type, default=field.default
        )
    main(Args(**vars(parser.parse_args())))
