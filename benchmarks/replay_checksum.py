"""CPU time of the checksums of DQN's replay.dat (docs/dqn_atari.md).

    python benchmarks/replay_checksum.py

For a replay of --rows transitions of one game: the CRC-32 of a row as it is added, the checksum of
all rows that a checkpoint takes, and the verification of a resume, which reads the file. CPU time
of one thread, so that other processes matter little; disk time comes on top.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dqn_atari


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=50_000)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        buffer = dqn_atari.ReplayBuffer(Path(folder) / "replay.dat", options.rows, 0, 1)
        seconds = 0.0
        for i in range(options.rows):
            buffer.rows[i]["frame"] = rng.integers(256, size=(1, 84, 84), dtype=np.uint8)
            start = time.process_time()
            buffer.file.update_checksum(i)
            seconds += time.process_time() - start
        print(f"adding: {1e6 * seconds / options.rows:.1f} us for a row")
        buffer.num_added = options.rows
        start = time.process_time()
        checksum = buffer.checksum()
        seconds = time.process_time() - start
        print(f"checkpoint: {1e9 * seconds / options.rows:.0f} ms for 1M rows")
        start = time.process_time()
        buffer.verify(checksum)
        seconds = time.process_time() - start
        size = buffer.rows.nbytes
        print(
            f"resume: {size / seconds / 1e9:.2f} GB/s, {1e6 * seconds / options.rows:.1f} s for 1M "
            "rows"
        )


if __name__ == "__main__":
    main()
