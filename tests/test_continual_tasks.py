"""Data sets and tasks of continual_supervised.py: formats, a server, what a task changes; ReDo.

`pytest -q tests/test_continual_tasks.py` (about 20 s).
"""

import gzip
import hashlib
import http.server
import io
import struct
import tarfile
import threading

import numpy as np
import pytest
import torch
from test_continual import TINY, parse, some_data

import activations
import continual_supervised as script
import optimizers
import runlog


def tasks(flags: str, seed=3, number=4, **data):
    args, data = parse(flags), some_data(**data)
    return [script.make_task(args, data, int(data["train"][1].max()) + 1, seed, k) for k in range(number)], data


def test_random_labels_change_and_the_images_stay():
    found, _ = tasks("--num-train 200")
    again, _ = tasks("--num-train 200")
    other, _ = tasks("--num-train 200", seed=4)
    for k, task in enumerate(found):
        assert sorted(task) == ["labels", "rows"] and len(set(task["rows"])) == 200
        assert (task["rows"] == found[0]["rows"]).all() and (task["labels"] == again[k]["labels"]).all()
        assert np.bincount(task["labels"], minlength=10).min() > 5  # 20 of each expected
        assert (task["rows"] != other[k]["rows"]).any() and (task["labels"] != other[k]["labels"]).any()
        assert k == 0 or (task["labels"] != found[k - 1]["labels"]).mean() > 0.7  # 0.9 expected


def test_permuted_labels_are_one_bijection_for_both_splits():
    found, data = tasks("--tasks permuted_labels --num-train 0")
    for task in found:
        pairs = {(int(data["train"][1][i]), int(y)) for i, y in zip(task["rows"], task["labels"])}
        assert len(pairs) == 10 and {a for a, _ in pairs} == {b for _, b in pairs} == set(range(10))
        assert {(int(data["test"][1][i]), int(y)) for i, y in zip(task["test_rows"], task["test_labels"])} <= pairs
    assert len({tuple(task["labels"]) for task in found}) == 4


def test_permuted_pixels_keep_labels_and_move_every_image_alike():
    found, data = tasks("--tasks permuted_pixels")
    for task in found:
        assert sorted(task["pixels"]) == list(range(64)) and (data["train"][1][task["rows"]] == task["labels"]).all()
    assert (found[0]["pixels"] != found[1]["pixels"]).any()
    args, images = parse("--tasks permuted_pixels"), torch.from_numpy(data["train"][0].reshape(300, -1))
    learner = script.Learner(args, (1, 8, 8), 10, 16.0, [3], torch.device("cpu"))
    rows, order = torch.from_numpy(found[1]["rows"][None, :5]), torch.from_numpy(found[1]["pixels"][None])
    x = learner.pixels(images, rows, order)[0]
    assert torch.equal(x, torch.stack([images[i][found[1]["pixels"]] / 16 for i in rows[0]]))


@pytest.mark.parametrize("per_task", [5, 10])
def test_split_classes_come_once_each_and_are_renumbered(per_task):
    flags = f"--tasks split_classes --classes-per-task {per_task} --num-train 0"
    found, data = tasks(flags, number=100 // per_task, num_classes=100, num=1_000)
    seen = []
    for task in found:
        classes = data["train"][1][task["rows"]]
        assert len(task["rows"]) == 10 * per_task and len(set(task["rows"])) == len(task["rows"])
        place = dict(zip(classes, task["labels"]))
        assert (np.array([place[c] for c in classes]) == task["labels"]).all()
        assert sorted(place.values()) == list(range(per_task))
        assert [place[c] for c in data["test"][1][task["test_rows"]]] == task["test_labels"].tolist()
        seen += place
    assert sorted(seen) == list(range(100))


def serve(folder, monkeypatch) -> str:
    """A server of this folder's files on the loopback interface; its address."""
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: handler(*a, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "*")
    return f"http://127.0.0.1:{server.server_address[1]}/"


def write_mnist(folder, monkeypatch) -> dict[str, np.ndarray]:
    """Small files in MNIST's format, compressed, and their checksums in the place of the real ones."""
    rng, arrays, sums = np.random.default_rng(0), {}, {}
    for split, num in (("train", 50), ("t10k", 20)):
        images, labels = rng.integers(256, size=(num, 28, 28)), np.arange(num) % 10
        for name, x in ((f"{split}-images-idx3-ubyte", images), (f"{split}-labels-idx1-ubyte", labels)):
            arrays[name] = x.astype(np.uint8)
            raw = struct.pack(f">HBB{x.ndim}I", 0, 8, x.ndim, *x.shape) + arrays[name].tobytes()
            (folder / f"{name}.gz").write_bytes(packed := gzip.compress(raw))
            sums[name] = hashlib.md5(raw).hexdigest(), hashlib.md5(packed).hexdigest()
    monkeypatch.setattr(script, "MNIST_MD5", sums)
    return arrays


def test_mnist_is_downloaded_once_checked_and_read(tmp_path, monkeypatch):
    (remote := tmp_path / "remote").mkdir()
    arrays = write_mnist(remote, monkeypatch)
    monkeypatch.setattr(script, "MNIST_URL", serve(remote, monkeypatch))
    for _ in range(2):  # the second time without the server's files
        data, classes, scale = script.load_data("mnist", tmp_path / "data")
        assert (classes, scale) == (10, 255.0)
        for split, name in (("train", "train"), ("test", "t10k")):
            assert (data[split][0][:, 0] == arrays[f"{name}-images-idx3-ubyte"]).all()
            assert (data[split][1] == arrays[f"{name}-labels-idx1-ubyte"]).all() and data[split][1].dtype == np.int64
        for file in remote.iterdir():
            file.write_bytes(b"")
    (tmp_path / "data" / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01")
    with pytest.raises(runlog.UserError, match="t10k-labels-idx1-ubyte is damaged"):
        script.load_data("mnist", tmp_path / "data")


def test_a_download_that_differs_or_fails_is_told_with_the_url(tmp_path, monkeypatch, capfd):
    (remote := tmp_path / "remote").mkdir()
    write_mnist(remote, monkeypatch)
    address = serve(remote, monkeypatch)
    (remote / "train-images-idx3-ubyte.gz").write_bytes(b"something else")
    for url in (address, "http://127.0.0.1:1/"):
        monkeypatch.setattr(script, "MNIST_URL", url)
        flags = f"--dataset mnist --num-train 40 --data-dir {tmp_path / 'data'} --runs-dir {tmp_path / 'runs'}"
        with pytest.raises(SystemExit) as stop, runlog.exit_on_user_error():
            script.main(parse(flags))
        out, err = capfd.readouterr()
        assert out == f"downloading {url}train-images-idx3-ubyte.gz\n"
        assert stop.value.code == 2 and err.startswith("error: --data-dir") and err.count("\n") == 1
        assert f"download {url}train-images-idx3-ubyte.gz into" in err and "--dataset digits" in err
    assert not (tmp_path / "runs").exists()


def write_cifar(folder, monkeypatch, num=200):
    """A small archive in the format of CIFAR-100's binary version; (images, labels) of both splits."""
    rng, found = np.random.default_rng(0), {}
    with tarfile.open(folder / "cifar-100-binary.tar.gz", "w:gz") as archive:
        for split, each in (("train", num), ("test", num // 2)):
            images, labels = rng.integers(256, size=(each, 3, 32, 32)).astype(np.uint8), np.arange(each) % 100
            rows = np.concatenate([(labels // 5)[:, None], labels[:, None], images.reshape(each, -1)], 1).astype(
                np.uint8
            )
            (info := tarfile.TarInfo(f"cifar-100-binary/{split}.bin")).size = rows.size
            archive.addfile(info, io.BytesIO(rows.tobytes()))
            found[split] = images, labels
    content = (folder / "cifar-100-binary.tar.gz").read_bytes()
    monkeypatch.setattr(script, "CIFAR100", (script.CIFAR100[0], hashlib.md5(content).hexdigest()))
    return found


def test_split_cifar100_trains_a_convolutional_network(tmp_path, monkeypatch):
    expected = write_cifar(tmp_path, monkeypatch)
    data, *numbers = script.load_data("cifar100", tmp_path)
    assert numbers == [100, 255.0]
    for split, (images, labels) in expected.items():
        assert (data[split][0] == images).all() and (data[split][1] == labels).all()
    flags = f"--dataset cifar100 --data-dir {tmp_path} --tasks split_classes --num-train 0 --channels 3 4 --redo"
    flags += " --activation crelu --layer-norm --redo-period 1 --redo-tau 0.4 --num-tasks 2 --runs-dir"
    script.main(parse(f"{flags} {tmp_path / 'batch'} --num-seeds 2"))
    script.main(parse(f"{flags} {tmp_path / 'alone'} --seed 2"))
    (alone,) = (tmp_path / "alone").glob("*/scalars.csv")
    rows = [line.split(",")[:3] for line in alone.read_text().splitlines()[1:]]
    batch = (tmp_path / "batch" / alone.parent.name / "scalars.csv").read_text().splitlines()[1:]
    assert {"network/classifier/conv2/srank", "charts/test_accuracy", "redo/recycled_share"} <= {
        key for _, key, _ in rows
    }
    for (step, key, value), line in zip(rows, batch, strict=True):
        assert line.split(",")[:2] == [step, key]
        if "condition" not in key and "gradient" not in key:
            assert float(line.split(",")[2]) == pytest.approx(float(value), rel=1e-2, abs=1e-3, nan_ok=True), (
                step,
                key,
            )


def test_the_convolutional_network_is_torchs():
    args = parse("--network cnn --dataset mnist --channels 3 4 --activation relu")
    network = script.Classifier(args, (1, 28, 28), 10, [1, 2])
    x = torch.rand(2, 5, 784, generator=torch.Generator().manual_seed(0))
    for i in range(2):
        h = x[i].view(5, 1, 28, 28)
        for convolution in network.convolutions:
            linear = convolution.branches[0].linear
            h = torch.nn.functional.conv2d(h, linear.weight[i], linear.bias[i]).relu()
            h = torch.nn.functional.max_pool2d(h, 2)
        h = h.flatten(1)
        for layer in network.hidden:
            h = (h @ layer.branches[0].linear.weight[i]).relu()
        torch.testing.assert_close(network(x)[i], h @ network.head.weight[i], rtol=1e-4, atol=1e-5)


WRONG = {
    "--dataset digit": ["--dataset", "digits"],
    "--activation rellu": ["--activation 'rellu'", "relu"],
    "--num-train 1201": ["--num-train 1201", "1200"],
    "--num-train 1 --batch-size 1": ["--num-train 1", "2..1200"],
    "--batch-size 65": ["--batch-size 65", "64"],
    "--batch-size 0": ["--batch-size 0", "[1, inf)"],
    "--network cnn": ["--channels (16, 16)", "8 pixels", "need 16", "--network mlp"],
    "--tasks split_classes --num-tasks 3": ["--num-tasks 3", "make 2"],
    "--tasks split_classes --num-tasks 1 --classes-per-task 11": ["--classes-per-task 11", "1..10"],
    "--metrics-samples 1": ["--metrics-samples 1", "[2, inf)"],
    "--threshold 1.5": ["--threshold 1.5", "(0, 1]"],
    "--l2 -1": ["--l2 -1", "[0, inf)"],
    "--learning-rate 0": ["--learning-rate 0", "(0, inf)"],
    "--device cuda:99": ["--device cuda:99", "use cpu or auto"],
    "--rational.constraint-power 3 --activation crational": ["--rational.constraint-power 3", "must exceed"],
}


@pytest.mark.parametrize("flags", WRONG)
def test_wrong_values_end_in_one_line(flags, tmp_path, capfd):
    with pytest.raises(SystemExit) as stop, runlog.exit_on_user_error():
        argv = [*TINY.split(), "--device", "cpu", *flags.split(), "--runs-dir", str(tmp_path / "runs")]
        script.main(runlog.parse_args(script.Args, argv))
    out, err = capfd.readouterr()
    assert stop.value.code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    assert all(word in err for word in WRONG[flags]), err
    assert not (tmp_path / "runs").exists()


def test_batched_recycling_equals_that_of_each_seed():
    results = []
    for seeds in ([1, 2], [1], [2]):
        network = script.Classifier(parse("--layer-norm --activation crelu"), (1, 8, 8), 10, seeds)
        optimizer = optimizers.Adam(network, 1e-3, activations.RationalConfig())
        with torch.no_grad():
            optimizer.step([torch.ones_like(p) for p in optimizer.parameters_])  # moments that are not 0
        dormant = [torch.zeros(len(seeds), layer.width, dtype=torch.bool) for layer in network.hidden]
        for i, seed in enumerate(seeds):
            dormant[0][i, seed::4] = dormant[1][i, seed :: 4 - seed] = True  # crelu: k and k + units
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        arguments = [*network.hidden], [network.head], dormant, optimizer, activations.orthogonal(), generators
        results.append((network, optimizer, optimizers.recycle_layers(*arguments)))
    (network, optimizer, share), *alone = results
    assert share.tolist() == [each[2].item() for each in alone] and 0 < share.min() < 1
    for name, p in network.named_parameters():
        for i, (single, adam, _) in enumerate(alone):
            other = single.get_parameter(name)
            assert torch.equal(p[i], other[0]), name
            for mine, theirs in zip(optimizer.moments(p), adam.moments(other), strict=True):
                assert torch.equal(mine[i], theirs[0]), name
    cleared = [(m == 0).float().mean().item() for p in network.parameters() for m in optimizer.moments(p)]
    assert min(cleared[:2]) > 0 and max(cleared) < 1
