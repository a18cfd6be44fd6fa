"""Image data sets, and sequences of classification tasks based on them.

    data = load("digits", Path("data"))
    tasks = Tasks(data, "permuted_labels", num_tasks=10, num_train=0, classes_per_task=5)
    task = tasks.make(seed=1, number=3)    # the fourth task of seed 1

To add a data set, write a loader and add it to LOADERS. See docs/continual_supervised.md.
"""

import gzip
import hashlib
import math
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

import runlog
from runlog import cli, seeding

MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST_MD5 = {  # of the file, and of the compressed file at the URL
    "train-images-idx3-ubyte": (
        "6bbc9ace898e44ae57da46a324031adb",
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    ),
    "train-labels-idx1-ubyte": (
        "a25bea736e30d166cdddb491f175f624",
        "d53e105ee54ea40749a09fcbcd1e9432",
    ),
    "t10k-images-idx3-ubyte": (
        "2646ac647ad5339dbf082846283269ea",
        "9fb629c4189551a2d022fa330f9573f3",
    ),
    "t10k-labels-idx1-ubyte": (
        "27ae3e4e09519cfbb04c329615203637",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
}
CIFAR100_URL = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
CIFAR100_MD5 = "03b5dce01913d631647c71ecec9e9cb8"

Name = Literal["digits", "mnist", "cifar100"]
IMAGE_SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar100": (3, 32, 32)}
TaskKind = Literal["random_labels", "permuted_labels", "permuted_pixels", "split_classes"]


@dataclass(frozen=True)
class Split:
    images: np.ndarray  # (n, channels, height, width) uint8
    labels: np.ndarray  # (n,) int64


@dataclass(frozen=True)
class DataSet:
    name: str
    train: Split
    test: Split
    num_classes: int
    largest: float  # largest pixel value

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)"""
        return self.train.images.shape[1:]


# ---- loading -------------------------------------------------------------------------------------


def load(name: str, folder: Path) -> DataSet:
    """Reads a data set from `folder`, downloading it first if necessary.

    Raises UserError (flag, value, remedy) for an unknown name, a missing folder, a damaged file or
    a failed download.
    """
    cli.check_choice("--dataset", name, LOADERS)
    runlog.check_folder("--data-dir", str(folder), written=False)
    remedy = "make it readable, or choose another --data-dir or --dataset digits"
    with runlog.errors_are_user_errors(f"--data-dir {folder}: {name} cannot be read", remedy):
        return LOADERS[name](folder)


def _load_digits(folder: Path) -> DataSet:
    """1,797 images of 8 x 8 pixels, from the scikit-learn package."""
    problem = "--dataset digits: cannot import scikit-learn"
    with runlog.errors_are_user_errors(problem, "pip install scikit-learn, or use --dataset mnist"):
        from sklearn.datasets import load_digits
    pixels, labels = load_digits(return_X_y=True)
    images = pixels.astype(np.uint8).reshape(-1, *IMAGE_SHAPES["digits"])
    train = Split(images[:1200], labels[:1200])
    test = Split(images[1200:], labels[1200:])
    return DataSet("digits", train, test, num_classes=10, largest=16.0)


def _load_mnist(folder: Path) -> DataSet:
    train = _mnist_split("train", folder)
    test = _mnist_split("t10k", folder)
    return DataSet("mnist", train, test, num_classes=10, largest=255.0)


def _mnist_split(split: str, folder: Path) -> Split:
    images = read_mnist(f"{split}-images-idx3-ubyte", folder)
    labels = read_mnist(f"{split}-labels-idx1-ubyte", folder)
    return Split(images.reshape(-1, *IMAGE_SHAPES["mnist"]), labels.astype(np.int64))


def read_mnist(name: str, folder: Path) -> np.ndarray:
    """An array of bytes in the IDX format: 0, 0, type, number of axes, their lengths (big-endian),
    the values. Raises UserError if the file is damaged, or cannot be downloaded."""
    file = folder / name
    md5, md5_compressed = MNIST_MD5[name]
    if file.exists():
        content = file.read_bytes()
    else:
        compressed = fetch(f"{MNIST_URL}{name}.gz", md5_compressed, folder)
        content = gzip.decompress(compressed.read_bytes())
    if hashlib.md5(content).hexdigest() != md5:
        problem = f"{name} is damaged (its MD5 is not {md5})"
        raise runlog.UserError(f"--data-dir {folder}: {problem}; delete it")
    num_axes = content[3]
    shape = np.frombuffer(content, ">i4", num_axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_axes).reshape(shape)


def _load_cifar100(folder: Path) -> DataSet:
    """The binary version, which avoids reading a pickle."""
    with tarfile.open(fetch(CIFAR100_URL, CIFAR100_MD5, folder)) as archive:
        train = _cifar_split(archive, "train")
        test = _cifar_split(archive, "test")
    return DataSet("cifar100", train, test, num_classes=100, largest=255.0)


def _cifar_split(archive: tarfile.TarFile, split: str) -> Split:
    content = archive.extractfile(f"cifar-100-binary/{split}.bin").read()
    shape = IMAGE_SHAPES["cifar100"]
    # coarse label, label, pixels
    rows = np.frombuffer(content, np.uint8).reshape(-1, 2 + math.prod(shape))
    return Split(rows[:, 2:].reshape(-1, *shape), rows[:, 1].astype(np.int64))


def fetch(url: str, md5: str, folder: Path) -> Path:
    """Downloads a file unless it exists; an existing file must have this MD5 too. Raises UserError,
    with the URL, if that fails."""
    name = url.rpartition("/")[2]
    if not (folder / name).exists():
        print(f"downloading {url}", flush=True)
    remedy = f"download {url} into {folder} yourself, or use --dataset digits"
    with runlog.errors_are_user_errors(f"--data-dir {folder}: no {name}", remedy):
        import pooch

        pooch.get_logger().setLevel("ERROR")
        return Path(pooch.retrieve(url, f"md5:{md5}", fname=name, path=folder))


LOADERS = {"digits": _load_digits, "mnist": _load_mnist, "cifar100": _load_cifar100}


# ---- tasks ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """What one seed learns in one task. `stack` combines those of several seeds into another Task,
    as tensors with a leading axis."""

    rows: np.ndarray | torch.Tensor  # (n,) indices of training images
    labels: np.ndarray | torch.Tensor  # (n,)
    test_rows: np.ndarray | torch.Tensor | None = None  # random labels have no test split
    test_labels: np.ndarray | torch.Tensor | None = None
    pixels: np.ndarray | torch.Tensor | None = None  # order of the pixels, where it changes


def stack(tasks: Sequence[Task], device: torch.device) -> Task:
    """Tasks of several seeds as one, whose tensors are (seeds, ...)."""
    stacked = {}
    for field in fields(Task):
        columns = [getattr(task, field.name) for task in tasks]
        if columns[0] is not None:
            stacked[field.name] = torch.from_numpy(np.stack(columns)).to(device)
    return Task(**stacked)


@dataclass(frozen=True)
class Tasks:
    """A sequence of tasks. Each depends only on (seed, its number), and has the same size for every
    number and seed."""

    data: DataSet
    kind: TaskKind
    num_tasks: int
    num_train: int  # training images per task; 0 = all
    classes_per_task: int  # for split_classes

    @property
    def num_outputs(self) -> int:
        """Number of classes that a network distinguishes."""
        return self.classes_per_task if self.kind == "split_classes" else self.data.num_classes

    def num_images(self, split: str) -> int:
        """Images per task in "train" or "test"; for split classes the size of the rarest class
        times classes_per_task."""
        if split == "train" and self.num_train:
            return self.num_train
        labels = getattr(self.data, split).labels
        if self.kind != "split_classes":
            return len(labels)
        rarest = np.bincount(labels, minlength=self.data.num_classes).min()
        return self.classes_per_task * int(rarest)

    def check(self) -> None:
        """Raises UserError (flag, value, remedy) unless the data set is sufficient for the
        tasks."""
        num_classes = self.data.num_classes
        if self.kind == "split_classes":
            per_task = self.classes_per_task
            if per_task > num_classes:
                problem = (
                    f"--tasks split_classes takes them from the {num_classes} of {self.data.name}"
                )
                remedy = f"must lie in 1..{num_classes}"
                raise runlog.UserError(f"--classes-per-task {per_task}: {problem}; {remedy}")
            most_tasks = num_classes // per_task
            if self.num_tasks > most_tasks:
                limit = f"{num_classes} classes make {most_tasks} of --classes-per-task {per_task}"
                raise runlog.UserError(f"--num-tasks {self.num_tasks}: {limit}")
        available = replace(self, num_train=0).num_images("train")
        if not 2 <= self.num_images("train") <= available:
            problem = f"must be 0 (all) or lie in 2..{available}"
            raise runlog.UserError(f"--num-train {self.num_train}: {problem}")

    def make(self, seed: int, number: int) -> Task:
        """The task of a seed, which depends only on (seed, number)."""
        rows, labels = self._images(seed, number, "train")
        if self.kind == "random_labels":
            generator = _generator(seed, "labels", number)
            return Task(rows, generator.integers(self.data.num_classes, size=len(rows)))
        pixels = None
        if self.kind == "permuted_pixels":
            num_pixels = self.data.train.images[0].size
            pixels = _generator(seed, "pixels", number).permutation(num_pixels)
        return Task(rows, labels, *self._images(seed, number, "test"), pixels)

    def _images(self, seed: int, number: int, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows of a split and their labels in this task, in an order drawn from the seed."""
        labels = getattr(self.data, split).labels
        keys = ("images", split)
        if self.kind == "permuted_labels":
            order = _generator(seed, "labels", number).permutation(self.data.num_classes)
            labels = order[labels]
        elif self.kind == "split_classes":
            labels = self._labels_in_task(seed, number)[labels]
            keys = ("images", split, number)
        candidates = np.flatnonzero(labels >= 0)
        rows = _generator(seed, *keys).permutation(candidates)[: self.num_images(split)]
        return rows, labels[rows]

    def _labels_in_task(self, seed: int, number: int) -> np.ndarray:
        """For each class its label in this task of split classes; -1 if it is not in the task."""
        first = number * self.classes_per_task
        order = _generator(seed, "classes").permutation(self.data.num_classes)
        labels = np.full(self.data.num_classes, -1)
        labels[order[first : first + self.classes_per_task]] = np.arange(self.classes_per_task)
        return labels


def _generator(seed: int, *keys: str | int) -> np.random.Generator:
    return np.random.default_rng(seeding.derive_seed(seed, *keys))
