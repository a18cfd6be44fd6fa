"""The Atari script itself, in turns; benchmarks/atari_peers.py starts this."""

import importlib
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
from benchmarks.peers.turns import Turns, hold


def main(settings: dict) -> None:
    module = importlib.import_module(f"{settings['algorithm']}_atari")
    flags = settings["script"]
    for name, value in flags.items():
        if isinstance(value, list):
            flags[name] = tuple(value)
    script = module.Args(**flags)
    if script.threads:
        torch.set_num_threads(script.threads)
    num_threads = torch.get_num_threads()
    turns = Turns(script.num_envs, settings["warm_up"], ("torch",), threads=num_threads)
    make_games = module.make_games
    module.make_games = lambda *args, **options: hold(make_games(*args, **options), turns)
    module.main(script)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
