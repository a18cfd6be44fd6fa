"""MNIST from a package, and the drill's commands, without training anything
(cr_continual.sh: test_scripts.py).

`pytest -q tests/test_continual_scripts.py` (about 10 s).
"""

import gzip
import hashlib
import io
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

import continual_supervised
import function_approximation
import runlog
from environments import datasets

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import drill_supervised  # noqa: E402
import mnist_from_wheel  # noqa: E402


def test_the_drills_commands_parse_and_save_often_enough_to_resume():
    lengths = {
        continual_supervised: lambda args: args.num_tasks * args.epochs * 75,
        function_approximation: lambda args: args.total_steps,
    }
    assert {module.__name__ for module in lengths} == {*drill_supervised.SCRIPTS}
    for module, length in lengths.items():
        flags = f"{drill_supervised.COMMON} {drill_supervised.SCRIPTS[module.__name__]}"
        args = runlog.parse_args(module.Args, flags.split())
        module.validate(args)
        assert args.num_seeds == 2 and length(args) >= 20 * args.checkpoint_frequency


def test_idx_files_are_read_as_they_were_written(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(256, size=(7, 28, 28)).astype(np.uint8)
    mnist_from_wheel.write_idx(tmp_path / "t10k-images-idx3-ubyte", images)
    content = (tmp_path / "t10k-images-idx3-ubyte").read_bytes()
    assert content[:16] == bytes([0, 0, 8, 3, 0, 0, 0, 7, 0, 0, 0, 28, 0, 0, 0, 28])
    assert len(content) == 16 + images.size
    with pytest.raises(runlog.UserError, match="damaged"):  # these are not MNIST's
        datasets.read_mnist("t10k-images-idx3-ubyte", tmp_path)
    sums = {"t10k-images-idx3-ubyte": (hashlib.md5(content).hexdigest(), "")}
    monkeypatch.setattr(datasets, "MNIST_MD5", sums)
    assert (datasets.read_mnist("t10k-images-idx3-ubyte", tmp_path) == images).all()


def test_the_unpickler_makes_arrays_and_nothing_else():
    arrays = (np.arange(6.0, dtype=np.float32).reshape(2, 3), np.arange(2))
    loaded = mnist_from_wheel.ArraysOnly(
        io.BytesIO(gzip.decompress(gzip.compress(pickle.dumps(arrays, 3))))
    ).load()
    assert all((a == b).all() and a.dtype == b.dtype for a, b in zip(loaded, arrays, strict=True))

    class Evil:
        def __reduce__(self):
            return os.system, ("exit 1",)

    for evil in (Evil(), np.load):
        with pytest.raises(pickle.UnpicklingError, match="is not part of an array"):
            mnist_from_wheel.ArraysOnly(io.BytesIO(pickle.dumps(evil))).load()
