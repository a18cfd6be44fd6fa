"""Continual supervised learning for studying plasticity: a network learns one task after the other (CR, 2507.14736).

The images stay (or their pixels move), the labels change with every task: what a network learns on the tenth task, and
how fast, tells how much of its plasticity is left. All seeds train in one process, in one compiled update; each is one
run folder; the same command again resumes it or says "finished".

    python continual_supervised.py --dataset digits --activation crational --num-seeds 10 --num-tasks 10 --epochs 134

Protocol, data sets, measures and results: docs/continual_supervised.md.
"""

import dataclasses
import gzip
import hashlib
import tarfile
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import activations
import metrics
import runlog

MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST_MD5 = {  # of the file, and of the compressed file that the URL gives
    "train-images-idx3-ubyte": ("6bbc9ace898e44ae57da46a324031adb", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
    "train-labels-idx1-ubyte": ("a25bea736e30d166cdddb491f175f624", "d53e105ee54ea40749a09fcbcd1e9432"),
    "t10k-images-idx3-ubyte": ("2646ac647ad5339dbf082846283269ea", "9fb629c4189551a2d022fa330f9573f3"),
    "t10k-labels-idx1-ubyte": ("27ae3e4e09519cfbb04c329615203637", "ec29112dd5afa0611ce80d1b7f02629c"),
}
CIFAR100 = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"
Tasks = Literal["random_labels", "permuted_labels", "permuted_pixels", "split_classes"]


@dataclasses.dataclass
class Args:
    seed: int = 1  # first seed
    num_seeds: int = runlog.option(1)  # seeds trained together in this process: seed, seed + 1, ...
    device: str = runlog.option("auto")  # auto (cuda where there is one), cpu, cuda, cuda:1, ...
    threads: int = runlog.option(0)  # CPU threads; 0 = torch's choice
    compile: bool = runlog.option(True)  # torch.compile the update; --no-compile runs it eagerly
    runs_dir: str = runlog.option("runs")  # where the run folders are
    fresh: bool = runlog.option(False)  # delete an existing run of these flags and start anew
    checkpoint_frequency: int = runlog.option(25_000)  # updates between checkpoints (at epoch ends)
    checkpoint_minutes: float = runlog.option(10.0)  # most minutes between checkpoints; 0 = any
    plots: bool = runlog.option(False)  # draw the activations and densities at the end (3 s a run)
    tensorboard: bool = runlog.option(True)  # mirror the scalars to TensorBoard event files
    track: bool = runlog.option(False)  # mirror to Weights & Biases (offline: WANDB_MODE=offline)
    wandb_project: str = runlog.option("activations-rl")  # W&B project
    wandb_entity: str | None = runlog.option(None)  # W&B team; None = the account's default
    # data and tasks; the defaults are those of Kumar et al. 2023 (2308.11958), random-label MNIST
    dataset: Literal["digits", "mnist", "cifar100"] = "digits"  # digits comes with scikit-learn, the others are fetched
    data_dir: str = runlog.option("data")  # where mnist and cifar100 are, or are downloaded to
    tasks: Tasks = "random_labels"  # what changes from task to task (docs/continual_supervised.md)
    num_tasks: int = 50  # tasks, one after the other
    epochs: int = 400  # passes through the images in each task
    num_train: int = 1_200  # images of a task; 0 = all there are
    classes_per_task: int = 5  # of split_classes: 5 gives 20 tasks of CIFAR-100, 10 gives 10
    reset_head: bool = False  # draw the output layer anew for each task
    # algorithm
    batch_size: int = 16  # images per update
    learning_rate: float = 1e-3  # Adam's learning rate
    l2: float = 0.0  # adds l2 * (sum of squared weights and biases) to the loss
    redo: bool = False  # recycle dormant neurons (ReDo)
    redo_tau: float = 0.025  # score up to which a neuron is dormant
    redo_period: int = 1_000  # gradient steps between recyclings
    # network
    network: Literal["auto", "mlp", "cnn"] = "auto"  # auto: cnn for cifar100, mlp for the others
    widths: tuple[int, ...] = (100, 100)  # units of the dense hidden layers
    channels: tuple[int, ...] = (16, 16)  # of the cnn's 5x5 convolutions, each followed by 2x2 max pooling
    activation: str = "relu"  # name or expression: relu, crational, tanh_hr, identity*silu (docs/activations.md)
    layer_norm: bool = False  # layer normalisation before each activation
    rational: activations.RationalConfig = dataclasses.field(default_factory=activations.RationalConfig)
    # metrics
    threshold: float = 0.95  # accuracy in an epoch from which a task counts as fitted
    log_frequency: int = 1_000  # updates between rows of loss, accuracy and coefficients (at the end of an epoch)
    metrics_samples: int = 512  # images that the network metrics look at, at the end of each task; 0 = off
    ntk_samples: int = 128  # images of the NTK rank, at the start and the end of each task; 0 = off


# ---- data: images uint8 (n, channels, height, width), labels int64 (n,) ----------------------------------------------


def fetch(url: str, md5: str, folder: Path) -> Path:
    """Downloads once; an existing file must have this MD5 too. Raises UserError, with the URL, if it cannot."""
    import pooch

    pooch.get_logger().setLevel("ERROR")
    name = url.rpartition("/")[2]
    if not (folder / name).exists():
        print(f"downloading {url}", flush=True)
    remedy = f"download {url} into {folder} yourself, or use --dataset digits"
    with runlog.errors_are_user_errors(f"--data-dir {folder}: no {name}", remedy):
        return Path(pooch.retrieve(url, f"md5:{md5}", fname=name, path=folder))


def read_mnist(name: str, folder: Path) -> np.ndarray:
    """An array of bytes in the IDX format: 0, 0, type, number of axes, their lengths (big-endian), the values."""
    file = folder / name
    md5, md5_compressed = MNIST_MD5[name]
    if file.exists():
        content = file.read_bytes()
    else:
        content = gzip.decompress(fetch(f"{MNIST_URL}{name}.gz", md5_compressed, folder).read_bytes())
    if hashlib.md5(content).hexdigest() != md5:
        raise runlog.UserError(f"--data-dir {folder}: {name} is damaged (its MD5 is not {md5}); delete it")
    shape = np.frombuffer(content, ">i4", content[3], 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def load_data(dataset: str, folder: Path) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], int, float]:
    """({"train": (images, labels), "test": ...}, number of classes, largest value of a pixel)."""
    if dataset == "digits":  # 1,797 images of 8 x 8
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        images = pixels.astype(np.uint8).reshape(-1, 1, 8, 8)
        return {"train": (images[:1200], labels[:1200]), "test": (images[1200:], labels[1200:])}, 10, 16.0
    data = {}
    for split, mnist in {"train": "train", "test": "t10k"}.items():
        if dataset == "mnist":
            images = read_mnist(f"{mnist}-images-idx3-ubyte", folder)[:, None]
            data[split] = images, read_mnist(f"{mnist}-labels-idx1-ubyte", folder).astype(np.int64)
            continue
        with tarfile.open(fetch(*CIFAR100, folder)) as archive:  # rows: coarse label, label, pixels
            content = archive.extractfile(f"cifar-100-binary/{split}.bin").read()
        rows = np.frombuffer(content, np.uint8).reshape(-1, 2 + 3 * 32 * 32)
        data[split] = rows[:, 2:].reshape(-1, 3, 32, 32), rows[:, 1].astype(np.int64)
    return data, 10 if dataset == "mnist" else 100, 255.0


def num_images(args: Args, data: dict, num_classes: int, split: str = "train") -> int:
    """Images of a task, the same for every task and seed; of split classes as often the rarest as there are classes."""
    labels = data[split][1]
    rarest = np.bincount(labels, minlength=num_classes).min()
    available = args.classes_per_task * int(rarest) if args.tasks == "split_classes" else len(labels)
    return args.num_train if split == "train" and args.num_train else available


def make_task(args: Args, data: dict, num_classes: int, seed: int, task: int) -> dict[str, np.ndarray]:
    """One seed's task: rows of the training images and their labels (n,); test_rows and test_labels, but for random
    labels; the order of the pixels where it changes. All depend on (seed, task) alone."""

    def rng(*keys):
        return np.random.default_rng(runlog.derive_seed(seed, *keys))

    found = {}
    for split, prefix in (("train", ""), ("test", "test_")):
        labels = data[split][1]
        rows = np.arange(len(data[split][1]))
        when = ()
        if args.tasks == "split_classes":
            classes = rng("classes").permutation(num_classes)[task * args.classes_per_task :][: args.classes_per_task]
            place = np.full(num_classes, -1)
            place[classes] = np.arange(args.classes_per_task)
            labels = place[labels]
            when = (task,)
            rows = np.flatnonzero(labels >= 0)
        elif args.tasks == "permuted_labels":
            labels = rng("labels", task).permutation(num_classes)[labels]
        rows = rng("images", split, *when).permutation(rows)[: num_images(args, data, num_classes, split)]
        found |= {prefix + "rows": rows, prefix + "labels": labels[rows]}
    if args.tasks == "random_labels":
        labels = rng("labels", task).integers(num_classes, size=len(found["rows"]))
        found = {"rows": found["rows"], "labels": labels}
    elif args.tasks == "permuted_pixels":
        found["pixels"] = rng("pixels", task).permutation(data["train"][0][0].size)
    return found


def uses_cnn(args: Args) -> bool:
    return args.network == "cnn" or (args.network == "auto" and args.dataset == "cifar100")


# ---- network: tensors are (seeds, batch, ...) ------------------------------------------------------------------------


class Classifier(nn.Module):
    """Pixels (seeds, batch, channels * height * width) in [0, 1] -> logits (seeds, batch, outputs)."""

    def __init__(self, args: Args, image_shape: tuple[int, ...], outputs: int, seeds):
        super().__init__()
        self.image_shape = image_shape
        self.convolutional = uses_cnn(args)
        shared = {} if args.rational.share_across_layers else None
        convolutions = []
        features, height, width = image_shape
        for i, channels in enumerate(args.channels if self.convolutional else ()):
            height, width = height - 4, width - 4
            norm = {"layer_norm": "chw" if args.layer_norm else "none", "out_size": (height, width)}
            options = {"seeds": runlog.derive_seeds(seeds, "conv", i), "rational": args.rational, "shared": shared}
            convolutions.append(activations.conv(features, channels, 5, args.activation, **norm, **options))
            features = convolutions[-1].width
            height = height // 2
            width = width // 2
        self.convolutions = nn.ModuleList(convolutions)
        features = features * height * width
        layers = []
        for i, units in enumerate(args.widths):
            options = {"seeds": runlog.derive_seeds(seeds, "dense", i), "rational": args.rational, "shared": shared}
            layers.append(activations.dense(features, units, args.activation, layer_norm=args.layer_norm, **options))
            features = layers[-1].width
        self.hidden = nn.Sequential(*layers)
        self.head = activations.Linear(features, outputs, seeds=runlog.derive_seeds(seeds, "head"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.convolutional:
            x = x.unflatten(-1, self.image_shape)
            for convolution in self.convolutions:
                x = convolution(x)
                x = F.max_pool2d(x.flatten(0, 1), 2).unflatten(0, x.shape[:2])
            x = x.flatten(2)
        return self.head(self.hidden(x))


class Learner(nn.Module):
    """All that an update changes: the network and its optimiser."""

    def __init__(self, args: Args, image_shape, outputs: int, scale: float, seeds: list[int], device: torch.device):
        super().__init__()
        self.args = args
        self.scale = scale
        self.network = Classifier(args, image_shape, outputs, seeds)
        self.optimizer = activations.Adam(self.network, args.learning_rate, args.rational)
        coefficients = activations.coefficient_names(self.network)
        self.penalties = [0.0 if name in coefficients else 2 * args.l2 for name in self.optimizer.names]
        self.to(device)
        torch._dynamo.config.trace_autograd_ops = True  # torch.autograd.grad inside a compiled function
        self.update = torch.compile(self.one_update, fullgraph=True, dynamic=False, disable=not args.compile)

    def pixels(self, images: torch.Tensor, rows: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
        """Rows (seeds, batch) of images (n, pixels) -> (seeds, batch, pixels) in [0, 1], in each seed's order."""
        x = images[rows].float() / self.scale
        return x if order is None else x.gather(-1, order.unsqueeze(-2).expand_as(x))

    def one_update(self, images, rows, labels, order) -> tuple[torch.Tensor, torch.Tensor]:
        """One step of Adam; returns loss and share of right answers before it, (seeds,) each. The seeds are
        independent, so the gradient of the sum of their losses is each one's own."""
        logits = self.network(self.pixels(images, rows, order))
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels).mean(-1)
        grads = torch.autograd.grad(loss.sum(), self.optimizer.parameters_)
        with torch.no_grad():
            penalised = zip(grads, self.optimizer.parameters_, self.penalties)
            self.optimizer.step([grad + penalty * p if penalty else grad for grad, p, penalty in penalised])
        return loss.detach(), (logits.detach().argmax(-1) == labels).float().mean(-1)

    @torch.no_grad()
    def reset_head(self, seeds: list[int], task: int) -> None:
        """Draws the output layer of each seed anew for this task, and clears Adam's moments of it."""
        head = self.network.head
        fresh = activations.Linear(*head.weight.shape[-2:], seeds=runlog.derive_seeds(seeds, "head", task))
        for parameter, new in zip(head.parameters(), fresh.parameters()):
            parameter.copy_(new)
            for moment in self.optimizer.moments(parameter):
                moment.zero_()

    @torch.no_grad()
    def recycle(self, x: torch.Tensor, generators: list[torch.Generator]) -> torch.Tensor:
        """ReDo on inputs x; returns the share of recycled neurons, (seeds,)."""
        layers = [*self.network.convolutions, *self.network.hidden]
        with metrics.record_layers(self.network) as records:
            self.network(x)
        outputs = [metrics.channel_samples(record.output, 1) for record in records.values()]
        dormant = [metrics.dormant_neurons(h, self.args.redo_tau)[0] for h in outputs]
        init = activations.orthogonal()
        return activations.recycle_layers(layers, [self.network.head], dormant, self.optimizer, init, generators)

    def restore(self, i: int, state: dict[str, torch.Tensor]) -> None:
        """Seed i of every tensor, and the step count that the seeds share, from a checkpoint."""
        for name, tensor in self.state_dict().items():
            (tensor[i] if tensor.dim() else tensor).copy_(state[name])


# ---- measures have no effect on the training -------------------------------------------------------------------------


@torch.no_grad()
def accuracy(learner: Learner, images, rows, labels, order) -> torch.Tensor:
    """Share of right answers, (seeds,); rows, labels (seeds, n)."""
    parts = zip(rows.split(1_000, 1), labels.split(1_000, 1))
    right = [learner.network(learner.pixels(images, x, order)).argmax(-1) == wanted for x, wanted in parts]
    return torch.cat(right, 1).float().mean(-1)


def ntk(learner: Learner, x: torch.Tensor, prefix: str) -> dict[str, torch.Tensor]:
    """Ranks of the NTK of the sum of the logits on inputs x, key -> (seeds,)."""
    found = metrics.ntk_rank(learner.network, (x,), 1) if learner.args.ntk_samples else {}
    return {f"{prefix}/ntk_{name}": value for name, value in found.items()}


def log_network_metrics(learner: Learner, runs: list[runlog.Run], x, labels, step: int, muted) -> None:
    """Health of every layer on images of the task, with the gradients of the loss there, into each seed's run."""
    logits = learner.network(x)
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels).mean(-1)
    grads = dict(zip(learner.optimizer.names, torch.autograd.grad(loss.sum(), learner.optimizer.parameters_)))
    runlog.log_report(runs, step, "network/classifier", metrics.network_report(learner.network, (x,), grads, 1), muted)


def coefficients(network: Classifier) -> dict[str, torch.Tensor]:
    """Every coefficient of the activations, (seeds,): coefficients/fc1/numerator1 is a_1 of a rational, log_scale is
    log c; the places of other activations' parameters count from 0."""
    found = {}
    named = {f"conv{i}": layer for i, layer in enumerate(network.convolutions, 1)}
    for place, layer in (named | {f"fc{i}": layer for i, layer in enumerate(network.hidden, 1)}).items():
        for b, branch in enumerate(layer.branches):
            prefix = f"coefficients/{place}/" + (f"branch{b}_" if len(layer.branches) > 1 else "")
            first = {"denominator": 1, "numerator": int(getattr(branch.activation, "constrained", False))}
            for name, value in branch.activation.named_parameters():
                places = [""] if value.dim() == 1 else [str(k + first.get(name, 0)) for k in range(value[0].numel())]
                columns = value.detach().reshape(len(value), -1).unbind(1)
                found |= {prefix + name + place: column for place, column in zip(places, columns)}
    return found


# ---- the run ---------------------------------------------------------------------------------------------------------


def network_size(args: Args, image_shape: tuple[int, ...], outputs: int) -> runlog.NetworkSize:
    """How many numbers `Classifier` holds."""
    size = runlog.NetworkSize()
    features, height, width = image_shape
    for channels in args.channels if uses_cnn(args) else ():
        height, width = height - 4, width - 4
        norm = channels * height * width if args.layer_norm else 0
        features = size.add_layer(features, channels, args.activation, norm, kernel=25, pixels=height * width)
        height, width = height // 2, width // 2
    features *= height * width
    for units in args.widths:
        features = size.add_layer(features, units, args.activation, norm=units if args.layer_norm else 0)
    size.add_head(features, outputs)
    return size


def big_tensors(args: Args, image_shape: tuple[int, ...], outputs: int) -> dict[str, int]:
    """Bytes of what takes the memory, of all seeds, by the flags that set it."""
    size = network_size(args, image_shape, outputs)
    of_image = np.prod(image_shape).item() + size.activations
    network_flags = "widths channels num_seeds" if uses_cnn(args) else "widths num_seeds"
    transient = {
        f"batch_size {network_flags}": args.batch_size * of_image,
        f"metrics_samples {network_flags}": args.metrics_samples * of_image,
        f"ntk_samples {network_flags}": runlog.NTK_COPIES * args.ntk_samples * size.parameters,
    }
    largest = max(transient, key=transient.get)  # one after the other
    numbers = {network_flags: runlog.ADAM_COPIES * size.parameters}
    numbers[largest] = transient[largest]
    return {fields: runlog.FLOAT_BYTES * args.num_seeds * count for fields, count in numbers.items()}


def validate(args: Args) -> tuple[dict, int, float]:
    """Raises UserError (flag, value, remedy) before anything is created; returns the data (see load_data)."""
    runlog.check_range(args, "[0, inf)", "seed threads num_train redo_tau l2 checkpoint_minutes")
    runlog.check_range(args, "[1, inf)", "num_seeds checkpoint_frequency num_tasks epochs classes_per_task batch_size")
    runlog.check_range(args, "[1, inf)", "redo_period widths channels log_frequency")
    runlog.check_range(args, "(0, inf)", "learning_rate")
    runlog.check_range(args, "(0, 1]", "threshold")
    runlog.check_range(args, "[2, inf)", " ".join(x for x in ("metrics_samples", "ntk_samples") if getattr(args, x)))
    runlog.check_flags(args, args.num_seeds)
    device = runlog.find_device(args.device)
    with runlog.value_errors_are_user_errors():
        activations.check(args.activation, args.rational)
    runlog.check_folder("--data-dir", args.data_dir, written=False)
    remedy = "make it readable, or choose another --data-dir or --dataset digits"
    with runlog.errors_are_user_errors(f"--data-dir {args.data_dir}: {args.dataset} cannot be read", remedy):
        data, num_classes, scale = load_data(args.dataset, Path(args.data_dir))
    is_split = args.tasks == "split_classes"
    if is_split and args.classes_per_task > num_classes:
        told = f"--tasks split_classes takes them from the {num_classes} of {args.dataset}"
        raise runlog.UserError(f"--classes-per-task {args.classes_per_task}: {told}; must lie in 1..{num_classes}")
    size = data["train"][0].shape[-1]
    depth = len(args.channels)
    available = num_images(args, data, num_classes)
    smallest = 5 * 2**depth - 4  # 5x5, then halved, again and again
    most = num_images(dataclasses.replace(args, num_train=0), data, num_classes)
    most_tasks = num_classes // args.classes_per_task if is_split else args.num_tasks
    tasks_there_are = f"{num_classes} classes make {most_tasks} of --classes-per-task {args.classes_per_task}"
    problems = {
        f"channels {args.channels}: {args.dataset} has {size} pixels a side, {depth} convolutions need {smallest}; "
        "use --network mlp": uses_cnn(args) and size < smallest,
        f"num-tasks {args.num_tasks}: {tasks_there_are}": args.num_tasks > most_tasks,
        f"num-train {args.num_train}: must be 0 (all) or lie in 2..{most}": not 2 <= available <= most,
        f"batch-size {args.batch_size}: must lie in 1..{available}": args.batch_size > available,
    }
    for problem, is_so in problems.items():
        if is_so:
            raise runlog.UserError(f"--{problem}")
    outputs = args.classes_per_task if is_split else num_classes
    runlog.check_memory(args, device, big_tensors(args, data["train"][0].shape[1:], outputs))
    return data, num_classes, scale


def train(args: Args, loaded: tuple[dict, int, float], seeds: list[int], runs: list[runlog.Run], start: int) -> None:
    """Trains these seeds together from update `start`, at which each has a checkpoint (0: from the beginning)."""
    data, num_classes, scale = loaded
    device = runlog.find_device(args.device)
    outputs = args.classes_per_task if args.tasks == "split_classes" else num_classes
    images, test_images = (torch.tensor(data[s][0]).flatten(1).to(device) for s in ("train", "test"))
    learner = Learner(args, data["train"][0].shape[1:], outputs, scale, seeds, device)
    generators = {use: [runlog.make_generator(seed, use) for seed in seeds] for use in ("order", "redo")}
    online = torch.zeros(len(seeds), device=device)  # sum over the task's epochs of the share of right answers
    fitted = torch.full((len(seeds),), torch.nan, device=device)  # updates until the task was fitted
    divergence = runlog.Divergence(seeds, device)
    last = [{} for _ in seeds]  # each seed's measures of the last task
    for i, run in enumerate(runs):
        _, state, _ = run.load_checkpoint(start)
        if state:
            learner.restore(i, state["learner"])
            online[i] = state["online"]
            fitted[i] = state["fitted"]
            divergence.step[i] = state["diverged"]
            last[i] = state["last"]
            runlog.set_states({use: each[i] for use, each in generators.items()}, state["generators"])

    def log(step: int, values: dict[str, torch.Tensor]) -> None:
        columns = {key: value.tolist() for key, value in values.items()}
        for i, run in enumerate(runs):
            run.log(step, {} if divergence.step[i] else {key: column[i] for key, column in columns.items()})

    num_train = num_images(args, data, num_classes)
    num_epochs = args.num_tasks * args.epochs
    steps_per_epoch = num_train // args.batch_size  # an epoch leaves out an incomplete batch
    steps_per_task = steps_per_epoch * args.epochs
    end = steps_per_epoch * num_epochs
    progress = runlog.Progress(start, end, f"{args.dataset} {args.tasks} {args.activation}")
    save_times = runlog.SaveTimes(start, args.checkpoint_frequency, args.checkpoint_minutes)
    task = {}
    for epoch in range(start // steps_per_epoch, num_epochs):
        step = epoch * steps_per_epoch
        number = epoch // args.epochs
        if all(divergence.step) and epoch % args.epochs == 0:
            runlog.carry_forward(runs, last, runlog.multiples(step, end, steps_per_task))
            break
        # begin a task
        if epoch % args.epochs == 0 or not task:
            each = [make_task(args, data, num_classes, seed, number) for seed in seeds]
            task = {key: torch.from_numpy(np.stack([t[key] for t in each])).to(device) for key in each[0]}
            rows = task["rows"]
            labels = task["labels"]
            order = task.get("pixels")
        if epoch % args.epochs == 0:
            if args.reset_head and number:
                learner.reset_head(seeds, number)
            online.zero_()
            fitted.fill_(torch.nan)
            log(step, ntk(learner, learner.pixels(images, rows[:, : args.ntk_samples], order), "task_start"))
        # learn
        shuffled = torch.stack([torch.randperm(num_train, generator=g) for g in generators["order"]]).to(device)
        shuffled = shuffled[:, : steps_per_epoch * args.batch_size]
        batches = (x.gather(1, shuffled).unflatten(1, (steps_per_epoch, -1)).unbind(1) for x in (rows, labels))
        losses = []
        right = []
        for mb_rows, mb_labels in zip(*batches):
            loss, share = learner.update(images, mb_rows, mb_labels, order)
            losses.append(loss)
            right.append(share)
            step += 1
            if args.redo and step % args.redo_period == 0:
                x = learner.pixels(images, rows[:, :1_200], order)
                log(step, {"redo/recycled_share": learner.recycle(x, generators["redo"])})
        losses = torch.stack(losses)
        share = torch.stack(right).mean(0)
        online += share
        fitted = torch.where(fitted.isnan() & (share >= args.threshold), step - number * steps_per_task, fitted)
        is_bad = ~losses.isfinite()
        first_bad = step - steps_per_epoch + 1 + is_bad.int().argmax(0)  # the update, where there is one
        divergence.update(first_bad, {"loss": torch.where(is_bad.any(0), torch.nan, 0.0)})
        divergence.report()
        # measure
        if step // args.log_frequency > (step - steps_per_epoch) // args.log_frequency or step == end:
            speed = progress.speed(step) * len(seeds)
            values = {"losses/loss": losses.mean(0), "charts/epoch_accuracy": share}
            values |= {"perf/updates_per_second": torch.full_like(online, speed)}
            log(step, values | coefficients(learner.network))
            progress.update(step, task=number + 1, accuracy=f"{share.mean():.3f}", ups=f"{speed:.0f}")
        if step % steps_per_task == 0:
            values = {"charts/task": torch.full_like(online, number + 1), "charts/steps_to_threshold": fitted}
            values["charts/online_accuracy"] = online / args.epochs
            values["charts/end_accuracy"] = accuracy(learner, images, rows, labels, order)
            if "test_rows" in task:
                test = task["test_rows"], task["test_labels"]
                values |= {"charts/test_accuracy": accuracy(learner, test_images, *test, order)}
            values |= ntk(learner, learner.pixels(images, rows[:, : args.ntk_samples], order), "task_end")
            columns = {key: value.tolist() for key, value in values.items()}
            for i, run in enumerate(runs):  # a diverged seed carries its last task forward
                last[i] = last[i] if divergence.step[i] else {key: column[i] for key, column in columns.items()}
                run.log(step, last[i])
            if num := args.metrics_samples:
                sample = learner.pixels(images, rows[:, :num], order), labels[:, :num]
                log_network_metrics(learner, runs, *sample, step, divergence.step)
            told = {key[7:]: np.mean([x.get(key, np.nan) for x in last]) for key in values if "accuracy" in key}
            told = ", ".join(f"{key} {value:.3f}" for key, value in told.items())
            progress.note(f"task {number + 1}: {told}")
        # save
        if save_times.is_due(step, step == end):
            tensors = learner.state_dict()
            for i, run in enumerate(runs):
                state = {
                    "learner": {name: tensor[i] if tensor.dim() else tensor for name, tensor in tensors.items()},
                    "last": last[i],
                    "online": online[i],
                    "fitted": fitted[i],
                    "diverged": int(divergence.step[i]),
                    "generators": {use: each[i].get_state() for use, each in generators.items()},
                }
                run.stage_checkpoint(step, state)
            for run in runs:
                run.commit_checkpoint()
            save_times.done(runs, step == end)
    if args.plots:
        runlog.draw(runs, end)
    runlog.finish(runs, divergence.report(), keep_replay=False)
    progress.close()


def runs_of(args: Args) -> list[runlog.Run]:
    """The runs of these flags, one for each seed. Creates nothing."""
    env_id = f"{args.dataset}-{args.tasks}"
    return runlog.seed_runs(args, "continual_supervised", env_id=env_id)


def main(args: Args) -> None:
    loaded = validate(args)
    torch.set_flush_denormal(True)  # the moments of dead units end as denormals, and these are slow
    torch.set_num_threads(args.threads or torch.get_num_threads())
    runs = {run.config["seed"]: run for run in runs_of(args)}
    with runlog.opened(runs, args, "continual_supervised") as groups:
        for step, seeds, together in groups:
            train(args, loaded, seeds, together, step)


if __name__ == "__main__":
    with runlog.exit_on_user_error():
        main(runlog.parse_args(Args))
