"""environments/datasets.py: formats, a server, damaged files, and what a task changes.

`pytest -q tests/test_datasets.py` (about 10 s).
"""

import gzip
import hashlib
import http.server
import io
import struct
import sys
import tarfile
import threading

import numpy as np
import pytest
import torch

import continual_supervised
import runlog
from environments import datasets

CPU = torch.device("cpu")


def some_data(num_classes=10, num=300) -> datasets.DataSet:
    rng = np.random.default_rng(0)
    images = rng.integers(17, size=(num, 1, 8, 8)).astype(np.uint8)
    labels = np.arange(num) % num_classes
    train = datasets.Split(images, labels)
    test = datasets.Split(images[::2], labels[::2])
    return datasets.DataSet("some", train, test, num_classes, 16.0)


def tasks_of(kind: str, num_train=64, num_tasks=4, per_task=5, **data) -> datasets.Tasks:
    return datasets.Tasks(some_data(**data), kind, num_tasks, num_train, per_task)


def make_all(tasks: datasets.Tasks, seed=3) -> list[datasets.Task]:
    tasks.check()
    return [tasks.make(seed, number) for number in range(tasks.num_tasks)]


# ---- tasks ---------------------------------------------------------------------------------------


def test_random_labels_change_and_the_images_stay():
    found = make_all(tasks_of("random_labels", 200))
    again = make_all(tasks_of("random_labels", 200))
    other = make_all(tasks_of("random_labels", 200), seed=4)
    for k, task in enumerate(found):
        assert task.test_rows is None
        assert task.test_labels is None
        assert task.pixels is None
        assert len(set(task.rows)) == 200 and (task.rows == found[0].rows).all()
        assert (task.labels == again[k].labels).all()
        assert np.bincount(task.labels, minlength=10).min() > 5  # 20 of each expected
        assert (task.rows != other[k].rows).any() and (task.labels != other[k].labels).any()
        assert k == 0 or (task.labels != found[k - 1].labels).mean() > 0.7  # 0.9 expected


def test_permuted_labels_are_one_bijection_for_both_splits():
    tasks = tasks_of("permuted_labels", 0)
    found = make_all(tasks)
    for task in found:
        truth = tasks.data.train.labels[task.rows]
        pairs = {(int(a), int(b)) for a, b in zip(truth, task.labels)}
        assert len(pairs) == 10 and {a for a, _ in pairs} == {b for _, b in pairs} == set(range(10))
        truth = tasks.data.test.labels[task.test_rows]
        assert {(int(a), int(b)) for a, b in zip(truth, task.test_labels)} <= pairs
    assert len({tuple(task.labels) for task in found}) == 4


def test_permuted_pixels_keep_labels_and_move_every_image_alike():
    tasks = tasks_of("permuted_pixels")
    found = make_all(tasks)
    for task in found:
        assert sorted(task.pixels) == list(range(64))
        assert (tasks.data.train.labels[task.rows] == task.labels).all()
    assert (found[0].pixels != found[1].pixels).any()
    args = continual_supervised.Args(tasks="permuted_pixels", compile=False)
    learner = continual_supervised.Learner(args, (1, 8, 8), 10, 16.0, [3], CPU)
    images = torch.from_numpy(tasks.data.train.images.reshape(300, -1))
    task = datasets.stack(found[1:2], CPU)
    x = learner.pixels(images, task.rows[:, :5], task.pixels)[0]
    expected = [images[row][found[1].pixels] / 16 for row in found[1].rows[:5]]
    assert torch.equal(x, torch.stack(expected))


@pytest.mark.parametrize("per_task", [5, 10])
def test_split_classes_come_once_each_and_are_renumbered(per_task):
    number = 100 // per_task
    tasks = tasks_of("split_classes", 0, number, per_task, num_classes=100, num=1_000)
    assert tasks.num_outputs == per_task
    seen = []
    for task in make_all(tasks):
        classes = tasks.data.train.labels[task.rows]
        assert len(task.rows) == len(set(task.rows)) == 10 * per_task
        place = dict(zip(classes, task.labels))
        assert (np.array([place[c] for c in classes]) == task.labels).all()
        assert sorted(place.values()) == list(range(per_task))
        truth = tasks.data.test.labels[task.test_rows]
        assert [place[c] for c in truth] == task.test_labels.tolist()
        seen += place
    assert sorted(seen) == list(range(100))


def test_stacked_tasks_have_a_leading_axis_of_seeds():
    tasks = tasks_of("permuted_pixels")
    stacked = datasets.stack([tasks.make(seed, 0) for seed in (1, 2)], CPU)
    assert stacked.rows.shape == stacked.labels.shape == (2, 64) and stacked.pixels.shape == (2, 64)
    assert stacked.test_rows.shape == stacked.test_labels.shape == (2, 150)
    assert stacked.labels[1].tolist() == tasks.make(2, 0).labels.tolist()
    assert datasets.stack([tasks_of("random_labels").make(1, 0)], CPU).test_rows is None


WRONG = {
    "--classes-per-task 11: .* must lie in 1..10": {"kind": "split_classes", "per_task": 11},
    "--num-tasks 3: 10 classes make 2 of --classes-per-task 5": {
        "kind": "split_classes",
        "num_tasks": 3,
    },
    "--num-train 301: must be 0 \\(all\\) or lie in 2..300": {
        "kind": "random_labels",
        "num_train": 301,
    },
    "--num-train 151: must be 0 \\(all\\) or lie in 2..150": {
        "kind": "split_classes",
        "num_tasks": 2,
        "num_train": 151,
    },
}


@pytest.mark.parametrize("message", WRONG)
def test_tasks_that_the_data_set_does_not_support_are_refused(message):
    with pytest.raises(runlog.UserError, match=f"^{message}$"):
        tasks_of(**WRONG[message]).check()


# ---- data sets -----------------------------------------------------------------------------------


def serve(folder, monkeypatch) -> str:
    """Serves this folder's files on the loopback interface; yields the address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "*")
    return f"http://127.0.0.1:{server.server_address[1]}/"


def write_mnist(folder, monkeypatch) -> dict[str, np.ndarray]:
    """Small files in MNIST's format, compressed; their checksums replace the real ones."""
    rng = np.random.default_rng(0)
    arrays = {}
    sums = {}
    for split, num in (("train", 50), ("t10k", 20)):
        arrays[f"{split}-images-idx3-ubyte"] = rng.integers(256, size=(num, 28, 28))
        arrays[f"{split}-labels-idx1-ubyte"] = np.arange(num) % 10
    for name, array in arrays.items():
        arrays[name] = array.astype(np.uint8)
        header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        content = header + arrays[name].tobytes()
        packed = gzip.compress(content)
        (folder / f"{name}.gz").write_bytes(packed)
        sums[name] = hashlib.md5(content).hexdigest(), hashlib.md5(packed).hexdigest()
    monkeypatch.setattr(datasets, "MNIST_MD5", sums)
    return arrays


def test_mnist_is_downloaded_once_checked_and_read(tmp_path, monkeypatch):
    remote = tmp_path / "remote"
    remote.mkdir()
    arrays = write_mnist(remote, monkeypatch)
    monkeypatch.setattr(datasets, "MNIST_URL", serve(remote, monkeypatch))
    for _ in range(2):  # the second time without the server's files
        data = datasets.load("mnist", tmp_path / "data")
        assert (data.num_classes, data.largest, data.image_shape) == (10, 255.0, (1, 28, 28))
        for split, name in ((data.train, "train"), (data.test, "t10k")):
            assert (split.images[:, 0] == arrays[f"{name}-images-idx3-ubyte"]).all()
            assert (split.labels == arrays[f"{name}-labels-idx1-ubyte"]).all()
            assert split.labels.dtype == np.int64
        for file in remote.iterdir():
            file.write_bytes(b"")
    (tmp_path / "data" / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01")
    message = "^--data-dir .*: t10k-labels-idx1-ubyte is damaged .*; delete it$"
    with pytest.raises(runlog.UserError, match=message):
        datasets.load("mnist", tmp_path / "data")


def write_cifar(folder, monkeypatch, num=200) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A small archive in the format of CIFAR-100; (images, labels) of both splits."""
    rng = np.random.default_rng(0)
    found = {}
    path = folder / "cifar-100-binary.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for split, size in (("train", num), ("test", num // 2)):
            images = rng.integers(256, size=(size, 3, 32, 32)).astype(np.uint8)
            labels = np.arange(size) % 100
            columns = [(labels // 5)[:, None], labels[:, None], images.reshape(size, -1)]
            rows = np.concatenate(columns, 1).astype(np.uint8)
            info = tarfile.TarInfo(f"cifar-100-binary/{split}.bin")
            info.size = rows.size
            archive.addfile(info, io.BytesIO(rows.tobytes()))
            found[split] = images, labels
    monkeypatch.setattr(datasets, "CIFAR100_MD5", hashlib.md5(path.read_bytes()).hexdigest())
    return found


def test_cifar100_is_read(tmp_path, monkeypatch):
    expected = write_cifar(tmp_path, monkeypatch)
    data = datasets.load("cifar100", tmp_path)
    assert (data.num_classes, data.largest) == (100, 255.0)
    for split, (images, labels) in ((data.train, expected["train"]), (data.test, expected["test"])):
        assert (split.images == images).all() and (split.labels == labels).all()


def test_digits_match_scikit_learn(tmp_path, monkeypatch):
    from sklearn.datasets import load_digits

    data = datasets.load("digits", tmp_path / "nothing")
    images = np.concatenate([data.train.images, data.test.images])
    assert images.shape == (1_797, 1, 8, 8) and len(data.train.labels) == 1_200
    assert images.max() == data.largest == 16 and (images[:, 0] == load_digits().images).all()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(runlog.UserError, match=r"^--dataset digits: .*pip install scikit-learn"):
        datasets.load("digits", tmp_path)


def test_data_that_cannot_be_loaded_is_reported_with_flag_and_remedy(tmp_path):
    with pytest.raises(runlog.UserError, match=r"^--dataset mnis: unknown; did you mean mnist"):
        datasets.load("mnis", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(
        runlog.UserError, match=r"^--data-dir .*/file: Not a directory; choose a folder"
    ):
        datasets.load("mnist", tmp_path / "file")
    (tmp_path / "train-images-idx3-ubyte").mkdir()
    message = (
        r"^--data-dir .*: mnist cannot be read \(.*; make it readable, or choose another --data-dir"
    )
    with pytest.raises(runlog.UserError, match=message):
        datasets.load("mnist", tmp_path)
