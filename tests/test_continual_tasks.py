"""continual_supervised.py: downloads, convolutions, wrong flags, ReDo
(the tasks: test_datasets.py).

`pytest -q tests/test_continual_tasks.py` (about 20 s).
"""

import pytest
import torch
from test_continual import TINY, parse
from test_datasets import serve, write_cifar, write_mnist

import activations
import continual_supervised as script
import optimizers
import runlog
from environments import datasets


def test_a_download_that_differs_or_fails_is_reported_with_the_url(tmp_path, monkeypatch, capfd):
    (remote := tmp_path / "remote").mkdir()
    write_mnist(remote, monkeypatch)
    address = serve(remote, monkeypatch)
    (remote / "train-images-idx3-ubyte.gz").write_bytes(b"something else")
    for url in (address, "http://127.0.0.1:1/"):
        monkeypatch.setattr(datasets, "MNIST_URL", url)
        flags = (
            f"--dataset mnist --num-train 40 --data-dir {tmp_path / 'data'} "
            f"--runs-dir {tmp_path / 'runs'}"
        )
        with pytest.raises(SystemExit) as stop, runlog.exit_on_user_error():
            script.main(parse(flags))
        out, err = capfd.readouterr()
        assert out == f"downloading {url}train-images-idx3-ubyte.gz\n"
        assert stop.value.code == 2
        assert err.startswith("error: --data-dir")
        assert err.count("\n") == 1
        assert f"download {url}train-images-idx3-ubyte.gz into" in err and "--dataset digits" in err
    assert not (tmp_path / "runs").exists()


def test_split_cifar100_trains_a_convolutional_network(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch)
    flags = (
        f"--dataset cifar100 --data-dir {tmp_path} --tasks split_classes --num-train 0 "
        "--channels 3 4 --redo"
    )
    flags += (
        " --activation crelu --layer-norm --redo-period 1 --redo-tau 0.4 --num-tasks 2 --runs-dir"
    )
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
            assert float(line.split(",")[2]) == pytest.approx(
                float(value), rel=1e-2, abs=1e-3, nan_ok=True
            ), (
                step,
                key,
            )


def test_the_convolutional_network_matches_torch():
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
    "--network cnn": ["--channels 16 16:", "8 pixels", "need 16", "--network mlp"],
    "--tasks split_classes --num-tasks 3": ["--num-tasks 3", "make 2"],
    "--tasks split_classes --num-tasks 1 --classes-per-task 11": ["--classes-per-task 11", "1..10"],
    "--metrics-samples 1": ["--metrics-samples 1", "[2, inf)"],
    "--threshold 1.5": ["--threshold 1.5", "(0, 1]"],
    "--l2 -1": ["--l2 -1", "[0, inf)"],
    "--learning-rate 0": ["--learning-rate 0", "(0, inf)"],
    "--device cuda:99": ["--device cuda:99", "use cpu or auto"],
    "--rational.constraint-power 3 --activation crational": [
        "--rational.constraint-power 3",
        "must exceed",
    ],
}


@pytest.mark.parametrize("flags", WRONG)
def test_wrong_values_end_in_one_line(flags, tmp_path, capfd):
    with pytest.raises(SystemExit) as stop, runlog.exit_on_user_error():
        argv = [
            *TINY.split(),
            "--device",
            "cpu",
            *flags.split(),
            "--runs-dir",
            str(tmp_path / "runs"),
        ]
        script.main(runlog.parse_args(script.Args, argv))
    out, err = capfd.readouterr()
    assert (
        stop.value.code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
    ), err
    assert all(word in err for word in WRONG[flags]), err
    assert not (tmp_path / "runs").exists()


def test_batched_recycling_equals_recycling_each_seed():
    results = []
    for seeds in ([1, 2], [1], [2]):
        network = script.Classifier(parse("--layer-norm --activation crelu"), (1, 8, 8), 10, seeds)
        optimizer = optimizers.Adam(network, 1e-3, activations.RationalConfig())
        with torch.no_grad():
            # moments that are not 0
            optimizer.step([torch.ones_like(p) for p in optimizer.parameters_])
        dormant = [
            torch.zeros(len(seeds), layer.width, dtype=torch.bool) for layer in network.hidden
        ]
        for i, seed in enumerate(seeds):
            # crelu: k and k + units
            dormant[0][i, seed::4] = True
            dormant[1][i, seed :: 4 - seed] = True
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        arguments = (
            [*network.hidden],
            [network.head],
            dormant,
            optimizer,
            activations.orthogonal(),
            generators,
        )
        results.append((network, optimizer, optimizers.recycle_layers(*arguments)))
    (network, optimizer, fraction), *alone = results
    assert fraction.tolist() == [result[2].item() for result in alone] and 0 < fraction.min() < 1
    for name, p in network.named_parameters():
        for i, (single, adam, _) in enumerate(alone):
            other = single.get_parameter(name)
            assert torch.equal(p[i], other[0]), name
            for mine, theirs in zip(optimizer.moments(p), adam.moments(other), strict=True):
                assert torch.equal(mine[i], theirs[0]), name
    cleared = []
    for p in network.parameters():
        cleared += [(moment == 0).float().mean().item() for moment in optimizer.moments(p)]
    assert min(cleared[:2]) > 0 and max(cleared) < 1
