"""Continual supervised learning on a sequence of tasks, to study plasticity (CR, 2507.14736).

Every task brings new labels, another order of the pixels or other classes (--tasks): what a network
learns on the tenth task, and how fast, shows how much plasticity it has left. All seeds train in
one process with one compiled update; each seed has its own run folder. The same command again
resumes the runs, or reports that they are finished.

    python continual_supervised.py --activation crational --num-seeds 10 --num-tasks 10 --epochs 134

Protocol, data sets, measures and results: docs/continual_supervised.md.
"""

import interrupts  # noqa: F401

import dataclasses
import math
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import activations
import metrics
import optimizers
import plots.dashboards
import reports
import runlog
from environments import datasets
from runlog import loading, memory, seeding

KERNEL = 5  # kernel size of the convolutions, each followed by 2x2 max pooling
REDO_IMAGES = 1_200  # images of the task on which ReDo looks for dormant neurons


@dataclasses.dataclass
class Args:
    # the flags that matter most
    dataset: datasets.Name = "digits"  # digits is part of scikit-learn, others are downloaded
    tasks: datasets.TaskKind = "random_labels"  # what changes from task to task (see docs/)
    activation: str = "relu"  # name or expression: tanh_hr, identity*silu (docs/activations.md)
    seed: int = 1  # first seed
    num_seeds: int = runlog.option(1)  # seeds trained together in this process: seed, seed + 1, ...
    num_tasks: int = 50  # number of tasks in the sequence
    epochs: int = 400  # passes over the images of each task
    layer_norm: bool = False  # layer normalisation before each activation
    device: str = runlog.option("auto")  # auto (cuda if available), cpu, cuda, cuda:1, ...
    track: bool = runlog.option(False)  # mirror to Weights & Biases (offline: WANDB_MODE=offline)
    # experiment
    threads: int = runlog.option(0)  # CPU threads; 0 = torch's default
    compile: bool = runlog.option(True)  # torch.compile the update; --no-compile runs it eagerly
    runs_dir: str = runlog.option("runs")  # folder that contains the run folders
    fresh: bool = runlog.option(False)  # delete an existing run with these flags and start over
    checkpoint_frequency: int = runlog.option(25_000)  # updates between checkpoints (at epoch ends)
    checkpoint_minutes: float = runlog.option(10.0)  # also save after this many minutes; 0 = never
    plots: bool = runlog.option(False)  # draw activations and densities at the end (3 s per run)
    # logging
    tensorboard: bool = runlog.option(True)  # mirror the scalars to TensorBoard event files
    wandb_project: str = runlog.option("activations-rl")  # W&B project
    wandb_entity: str | None = runlog.option(None)  # W&B team; None = the account's default
    # data and tasks; the defaults are those of Kumar et al. 2023 (2308.11958), random-label MNIST
    data_dir: str = runlog.option("data")  # folder of mnist and cifar100, also for downloads
    num_train: int = 1_200  # images per task; 0 = all
    classes_per_task: int = 5  # for split_classes: 5 gives 20 tasks of CIFAR-100, 10 gives 10
    reset_head: bool = False  # reinitialise the output layer for each task
    # algorithm
    batch_size: int = 16  # images per update
    learning_rate: float = 1e-3  # Adam's learning rate
    l2: float = 0.0  # adds l2 * (sum of squared weights and biases) to the loss
    redo: bool = False  # recycle dormant neurons (ReDo)
    redo_tau: float = 0.025  # a neuron with at most this score is dormant
    redo_period: int = 1_000  # gradient steps between recyclings
    # network
    network: Literal["auto", "mlp", "cnn"] = "auto"  # auto: cnn for cifar100, mlp for the others
    widths: tuple[int, ...] = (100, 100)  # units of the dense hidden layers
    channels: tuple[int, ...] = (16, 16)  # of the cnn's 5x5 convolutions, each 2x2 max-pooled
    rational: activations.RationalConfig = dataclasses.field(
        default_factory=activations.RationalConfig
    )
    # evaluation and metrics
    threshold: float = 0.95  # accuracy in an epoch at which a task counts as fitted
    log_frequency: int = 1_000  # updates between logged losses and accuracies (at epoch ends)
    metrics_samples: int = 512  # images for the network metrics at the end of each task; 0 = off
    ntk_samples: int = 128  # images for the NTK rank, at start and end of each task; 0 = off


# ---- network: tensors are (seeds, batch, ...) ----------------------------------------------------


def uses_cnn(args: Args) -> bool:
    return args.network == "cnn" or (args.network == "auto" and args.dataset == "cifar100")


def conv_sizes(args: Args, image_shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """(height, width) of the output of each convolution, before pooling."""
    _, height, width = image_shape
    sizes = []
    for _ in args.channels if uses_cnn(args) else ():
        height -= KERNEL - 1
        width -= KERNEL - 1
        sizes.append((height, width))
        height //= 2
        width //= 2
    return sizes


class Classifier(nn.Module):
    """Pixels (seeds, batch, channels * height * width) -> logits (seeds, batch, outputs); if seeds
    is a number instead of a list, there is no seed axis."""

    def __init__(self, args: Args, image_shape: tuple[int, ...], outputs: int, seeds):
        super().__init__()
        self.image_shape = image_shape
        self.convolutional = uses_cnn(args)
        shared = {} if args.rational.share_across_layers else None

        features, height, width = image_shape
        self.convolutions = nn.ModuleList()
        for i, size in enumerate(conv_sizes(args, image_shape)):
            layer = activations.conv(
                features,
                args.channels[i],
                KERNEL,
                args.activation,
                seeds=seeding.derive_seeds(seeds, "conv", i),
                layer_norm="chw" if args.layer_norm else "none",
                out_size=size,
                rational=args.rational,
                shared=shared,
            )
            self.convolutions.append(layer)
            features = layer.width
            height = size[0] // 2
            width = size[1] // 2

        features = features * height * width
        self.hidden = nn.Sequential()
        for i, units in enumerate(args.widths):
            layer = activations.dense(
                features,
                units,
                args.activation,
                seeds=seeding.derive_seeds(seeds, "dense", i),
                layer_norm=args.layer_norm,
                rational=args.rational,
                shared=shared,
            )
            self.hidden.append(layer)
            features = layer.width
        self.head = activations.Linear(features, outputs, seeds=seeding.derive_seeds(seeds, "head"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.convolutional:
            x = x.unflatten(-1, self.image_shape)
            for convolution in self.convolutions:
                x = convolution(x)
                pooled = F.max_pool2d(x.flatten(0, -4), 2)
                x = pooled.unflatten(0, x.shape[:-3])
            x = x.flatten(-3)
        return self.head(self.hidden(x))


# ---- losses: (seeds,), of logits (seeds, batch, outputs) and labels (seeds, batch) ---------------


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over the batch."""
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return losses.view_as(labels).mean(-1)


def batch_accuracy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Fraction of images whose largest logit is that of their label."""
    return (logits.argmax(-1) == labels).float().mean(-1)


class Learner(nn.Module):
    """Everything that an update changes: the network and its optimiser."""

    def __init__(
        self,
        args: Args,
        image_shape: tuple[int, ...],
        outputs: int,
        scale: float,  # largest pixel value
        seeds: list[int],
        device: torch.device,
        *,
        num_updates: int | None = None,  # of the whole training, for an annealed constraint
    ):
        super().__init__()
        self.args = args
        self.scale = scale
        self.num_updates = num_updates
        self.network = Classifier(args, image_shape, outputs, seeds)
        self.optimizer = optimizers.Adam(self.network, args.learning_rate, args.rational)
        unpenalised = activations.coefficient_names(self.network)
        names = self.optimizer.names
        self.penalties = [0.0 if name in unpenalised else 2 * args.l2 for name in names]
        self.to(device)
        torch._dynamo.config.trace_autograd_ops = True  # autograd.grad inside a compiled function
        self.update = torch.compile(
            self.one_update, fullgraph=True, dynamic=False, disable=not args.compile
        )

    def pixels(
        self, images: torch.Tensor, rows: torch.Tensor, order: torch.Tensor | None
    ) -> torch.Tensor:
        """Rows (seeds, batch) of images (n, pixels) -> (seeds, batch, pixels) in [0, 1], each
        seed's pixels in its order."""
        x = images[rows].float() / self.scale
        if order is None:
            return x
        return x.gather(-1, order.unsqueeze(-2).expand_as(x))

    def one_update(
        self,
        images: torch.Tensor,
        rows: torch.Tensor,
        labels: torch.Tensor,
        order: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One step of Adam; returns the loss and the fraction of correct answers before it,
        (seeds,) each. The seeds are independent, so the sum of their losses has the gradients of
        each."""
        with activations.observing(self.network):
            logits = self.network(self.pixels(images, rows, order))
        loss = cross_entropy(logits, labels)
        grads = list(torch.autograd.grad(loss.sum(), self.optimizer.parameters_))
        with torch.no_grad():
            for i, penalty in enumerate(self.penalties):
                if penalty:
                    grads[i] = grads[i] + penalty * self.optimizer.parameters_[i]
            self.optimizer.step(grads)
            activations.step_constraints(self.network, self.num_updates)
        return loss.detach(), batch_accuracy(logits.detach(), labels)

    @torch.no_grad()
    def reset_head(self, seeds: list[int], task: int) -> None:
        """Draws each seed's output layer again for this task, and clears its Adam moments."""
        head = self.network.head
        head_seeds = seeding.derive_seeds(seeds, "head", task)
        fresh = activations.Linear(*head.weight.shape[-2:], seeds=head_seeds)
        for parameter, new in zip(head.parameters(), fresh.parameters()):
            parameter.copy_(new)
            for moment in self.optimizer.moments(parameter):
                moment.zero_()

    @torch.no_grad()
    def recycle(self, x: torch.Tensor, generators: list[torch.Generator]) -> torch.Tensor:
        """ReDo on inputs x; returns the fraction of recycled neurons, (seeds,)."""
        layers = [*self.network.convolutions, *self.network.hidden]
        with reports.record_layers(self.network) as records:
            self.network(x)
        dormant = []
        for record in records.values():
            outputs = metrics.channel_samples(record.output, batch_dims=1)
            mask, _ = metrics.dormant_neurons(outputs, self.args.redo_tau)
            dormant.append(mask)
        init = activations.orthogonal()
        readers = [self.network.head]
        return optimizers.recycle_layers(layers, readers, dormant, self.optimizer, init, generators)


# ---- measures have no effect on the training -----------------------------------------------------


@torch.no_grad()
def accuracy(learner: Learner, images, rows, labels, order) -> torch.Tensor:
    """Fraction of correct answers, (seeds,); rows, labels (seeds, n)."""
    right = []
    for part, wanted in zip(rows.split(1_000, 1), labels.split(1_000, 1)):
        logits = learner.network(learner.pixels(images, part, order))
        right.append(logits.argmax(-1) == wanted)
    return torch.cat(right, 1).float().mean(-1)


def ntk(learner: Learner, x: torch.Tensor, prefix: str) -> dict[str, torch.Tensor]:
    """Ranks of the NTK of the sum of the logits on inputs x, key -> (seeds,)."""
    if not learner.args.ntk_samples:
        return {}
    found = metrics.ntk_rank(learner.network, (x,), batch_dims=1)
    return {f"{prefix}/ntk_{name}": value for name, value in found.items()}


def health(learner: Learner, x: torch.Tensor, labels: torch.Tensor) -> reports.NetworkReport:
    """Metrics of every layer on images of the task, with the gradients of the loss there."""
    loss = cross_entropy(learner.network(x), labels)
    grads = torch.autograd.grad(loss.sum(), learner.optimizer.parameters_)
    named_grads = dict(zip(learner.optimizer.names, grads))
    return reports.network_report(learner.network, (x,), named_grads, batch_dims=1)


def coefficients(network: Classifier) -> dict[str, torch.Tensor]:
    """Every coefficient of the activations, (seeds,): coefficients/fc1/numerator1 is a_1 of a
    rational, log_scale is log c; entries of other activations' parameters are numbered from 0."""
    layers = {}
    for i, layer in enumerate(network.convolutions, start=1):
        layers[f"conv{i}"] = layer
    for i, layer in enumerate(network.hidden, start=1):
        layers[f"fc{i}"] = layer
    found = {}
    for place, layer in layers.items():
        for b, branch in enumerate(layer.branches):
            prefix = f"coefficients/{place}/"
            if len(layer.branches) > 1:
                prefix += f"branch{b}_"
            for name, value in branch.activation.named_parameters():
                if name == "updates":  # a count, not a coefficient
                    continue
                first = first_power(branch.activation, name)
                columns = value.detach().reshape(len(value), -1).unbind(1)
                for k, column in enumerate(columns, start=first):
                    key = f"{prefix}{name}{k}" if value.dim() > 1 else f"{prefix}{name}"
                    found[key] = column
    return found


def first_power(activation: nn.Module, name: str) -> int:
    """The power of x that the first entry of a parameter multiplies."""
    if name == "denominator":
        return 1
    if name == "numerator":
        return int(getattr(activation, "constrained", False))  # crational has no a_0
    return 0


# ---- flags ---------------------------------------------------------------------------------------


def network_size(args: Args, image_shape: tuple[int, ...], outputs: int) -> memory.NetworkSize:
    """The size of `Classifier`."""
    size = memory.NetworkSize()
    features, height, width = image_shape
    for channels, (height, width) in zip(args.channels, conv_sizes(args, image_shape)):
        pixels = height * width
        norm = channels * pixels if args.layer_norm else 0
        features = size.add_layer(
            features, channels, args.activation, norm, kernel=KERNEL**2, pixels=pixels
        )
        height //= 2
        width //= 2
    features = features * height * width
    for units in args.widths:
        norm = units if args.layer_norm else 0
        features = size.add_layer(features, units, args.activation, norm)
    size.add_head(features, outputs)
    return size


def big_tensors(args: Args, image_shape: tuple[int, ...], outputs: int) -> dict[str, int]:
    """Bytes of the largest memory users, all seeds together, by the flags that set them."""
    size = network_size(args, image_shape, outputs)
    size.activations += math.prod(image_shape)
    network_flags = "widths channels num_seeds" if uses_cnn(args) else "widths num_seeds"
    one_at_a_time = {
        f"batch_size {network_flags}": size.sample_bytes(args.batch_size),
        f"metrics_samples {network_flags}": size.sample_bytes(args.metrics_samples),
        f"ntk_samples {network_flags}": size.ntk_bytes(args.ntk_samples),
    }
    largest = max(one_at_a_time, key=one_at_a_time.get)
    return {
        network_flags: args.num_seeds * size.training_bytes(),
        largest: args.num_seeds * one_at_a_time[largest],
    }


def check_settings(args: Args) -> None:
    """Raises UserError (flag, value, remedy) for values that cannot work on any machine. A sweep
    calls this before it starts anything."""
    runlog.check_range(args, "[0, inf)", "seed threads num_train redo_tau l2 checkpoint_minutes")
    runlog.check_range(args, "[1, inf)", "num_seeds checkpoint_frequency num_tasks epochs")
    runlog.check_range(args, "[1, inf)", "classes_per_task batch_size redo_period widths channels")
    runlog.check_range(args, "[1, inf)", "log_frequency")
    runlog.check_range(args, "(0, inf)", "learning_rate")
    runlog.check_range(args, "(0, 1]", "threshold")
    for flag in ("metrics_samples", "ntk_samples"):
        if getattr(args, flag):  # 0 = off
            runlog.check_range(args, "[2, inf)", flag)
    with runlog.value_errors_are_user_errors():
        activations.check(args.activation, args.rational)
        activations.check_schedule([args.activation], args.rational)


def validate(args: Args) -> datasets.Tasks:
    """The tasks to learn. Raises UserError (flag, value, remedy) before anything is created."""
    check_settings(args)
    runlog.check_flags(args, args.num_seeds)
    device = runlog.find_device(args.device)

    data = datasets.load(args.dataset, Path(args.data_dir))
    tasks = datasets.Tasks(data, args.tasks, args.num_tasks, args.num_train, args.classes_per_task)
    tasks.check()
    side = data.image_shape[-1]
    depth = len(args.channels)
    smallest = (KERNEL - 1) * (2**depth - 1) + 2**depth  # side in pixels: convolved, halved
    if uses_cnn(args) and side < smallest:
        channels = " ".join(map(str, args.channels))
        problem = f"{args.dataset} has {side} pixels per side, {depth} convolutions need {smallest}"
        raise runlog.UserError(f"--channels {channels}: {problem}; use --network mlp")
    num_train = tasks.num_images("train")
    if args.batch_size > num_train:
        raise runlog.UserError(f"--batch-size {args.batch_size}: must lie in 1..{num_train}")
    runlog.check_memory(args, device, big_tensors(args, data.image_shape, tasks.num_outputs))
    return tasks


# ---- the run -------------------------------------------------------------------------------------


@dataclasses.dataclass
class Training:
    """Seeds that train together."""

    learner: Learner
    images: torch.Tensor  # (n, pixels) uint8, of the training split
    test_images: torch.Tensor
    order: list[torch.Generator]  # for the order of a task's images in each epoch
    redo: list[torch.Generator]  # for the weights of recycled neurons
    online: torch.Tensor  # (seeds,) sum over the task's epochs of the accuracy
    fitted: torch.Tensor  # (seeds,) updates until the task was fitted; nan: not yet
    last: list[dict[str, float]]  # each seed's measures on its last task

    def state(self) -> dict:
        """The content of a checkpoint, with an entry for each seed."""
        return {
            "learner": self.learner.state_dict(),
            "last": self.last,
            "online": self.online,
            "fitted": self.fitted,
            "generators": {
                "order": [generator.get_state() for generator in self.order],
                "redo": [generator.get_state() for generator in self.redo],
            },
        }

    def restore(self, state: dict[str, list]) -> None:
        runlog.restore_module(self.learner, state["learner"])
        for i in range(len(self.last)):
            self.last[i] = state["last"][i]
            self.online[i] = state["online"][i]
            self.fitted[i] = state["fitted"][i]
            self.order[i].set_state(state["generators"][i]["order"])
            self.redo[i].set_state(state["generators"][i]["redo"])

    def task_pixels(self, task: datasets.Task, num: int) -> torch.Tensor:
        """The first `num` training images of a task, (seeds, num, pixels)."""
        return self.learner.pixels(self.images, task.rows[:, :num], task.pixels)


def updates_per_epoch(args: Args, tasks: datasets.Tasks) -> int:
    return tasks.num_images("train") // args.batch_size


def begin_training(args: Args, tasks: datasets.Tasks, seeds: list[int]) -> Training:
    device = runlog.find_device(args.device)
    data = tasks.data
    num_updates = updates_per_epoch(args, tasks) * args.epochs * args.num_tasks
    learner = Learner(
        args,
        data.image_shape,
        tasks.num_outputs,
        data.largest,
        seeds,
        device,
        num_updates=num_updates,
    )
    return Training(
        learner=learner,
        images=torch.tensor(data.train.images).flatten(1).to(device),
        test_images=torch.tensor(data.test.images).flatten(1).to(device),
        order=seeding.make_generators(seeds, "order"),
        redo=seeding.make_generators(seeds, "redo"),
        online=torch.zeros(len(seeds), device=device),
        fitted=torch.full((len(seeds),), torch.nan, device=device),
        last=[{} for _ in seeds],
    )


def begin_task(
    args: Args, training: Training, batch: runlog.Batch, step: int, number: int, task: datasets.Task
) -> None:
    learner = training.learner
    if args.reset_head and number:
        learner.reset_head(batch.seeds, number)
    training.online.zero_()
    training.fitted.fill_(torch.nan)
    ranks = ntk(learner, training.task_pixels(task, args.ntk_samples), "task_start")
    batch.log(step, ranks, skip_diverged=True)


def learn_epoch(
    args: Args, training: Training, batch: runlog.Batch, step: int, task: datasets.Task
) -> tuple[torch.Tensor, torch.Tensor]:
    """Passes over the task's images once, in an order drawn by each seed, dropping the last
    incomplete batch. Returns losses (updates, seeds), and fractions of correct answers (seeds,)."""
    num_train = task.rows.shape[1]
    num_updates = num_train // args.batch_size
    orders = [torch.randperm(num_train, generator=generator) for generator in training.order]
    shuffled = torch.stack(orders).to(task.rows.device)[:, : num_updates * args.batch_size]
    rows = task.rows.gather(1, shuffled).unflatten(1, (num_updates, -1)).unbind(1)
    labels = task.labels.gather(1, shuffled).unflatten(1, (num_updates, -1)).unbind(1)
    update = training.learner.update
    losses = []
    accuracies = []
    for mb_rows, mb_labels in zip(rows, labels):
        loss, mb_accuracy = update(training.images, mb_rows, mb_labels, task.pixels)
        losses.append(loss)
        accuracies.append(mb_accuracy)
        step += 1
        if args.redo and step % args.redo_period == 0:
            x = training.task_pixels(task, REDO_IMAGES)
            recycled = training.learner.recycle(x, training.redo)
            batch.log(step, {"redo/recycled_share": recycled}, skip_diverged=True)
    return torch.stack(losses), torch.stack(accuracies).mean(0)


def note_divergence(batch: runlog.Batch, before: int, losses: torch.Tensor) -> None:
    """Records, for each seed, the first update after `before` whose loss is not finite."""
    is_bad = ~losses.isfinite()
    first_bad = before + 1 + is_bad.int().argmax(0)
    batch.note_losses(first_bad, {"loss": torch.where(is_bad.any(0), torch.nan, 0.0)})
    batch.diverged()  # prints a line for each newly diverged seed


def measure_task(
    args: Args, training: Training, number: int, task: datasets.Task
) -> dict[str, torch.Tensor]:
    """The measures of each seed at the end of a task, (seeds,)."""
    learner = training.learner
    images = training.images
    values = {
        "charts/task": torch.full_like(training.online, number + 1),
        "charts/steps_to_threshold": training.fitted,
        "charts/online_accuracy": training.online / args.epochs,
        "charts/end_accuracy": accuracy(learner, images, task.rows, task.labels, task.pixels),
    }
    if task.test_rows is not None:
        values["charts/test_accuracy"] = accuracy(
            learner, training.test_images, task.test_rows, task.test_labels, task.pixels
        )
    x = training.task_pixels(task, args.ntk_samples)
    return values | ntk(learner, x, "task_end")


def end_task(
    args: Args, training: Training, batch: runlog.Batch, step: int, number: int, task: datasets.Task
) -> str:
    """Logs the measures of a task, and returns a line that summarises them. For a diverged seed,
    the values of its last task are carried forward."""
    values = measure_task(args, training, number, task)
    columns = [value.tolist() for value in values.values()]
    rows = [dict(zip(values, column)) for column in zip(*columns)]
    for i, diverged_at in enumerate(batch.diverged()):
        if not diverged_at:
            training.last[i] = rows[i]
    batch.log_rows(step, training.last)
    if args.metrics_samples:
        x = training.task_pixels(task, args.metrics_samples)
        report = health(training.learner, x, task.labels[:, : args.metrics_samples])
        batch.log_report(step, "network/classifier", report, skip_diverged=True)
    parts = []
    for key in values:
        if "accuracy" in key:
            mean = np.mean([row.get(key, np.nan) for row in training.last])
            parts.append(f"{key.removeprefix('charts/')} {mean:.3f}")
    return f"task {number + 1}: {', '.join(parts)}"


def train(args: Args, tasks: datasets.Tasks, batch: runlog.Batch) -> None:
    """Trains the seeds of a batch together, from its current step to the end."""
    epoch_updates = updates_per_epoch(args, tasks)
    updates_per_task = epoch_updates * args.epochs
    end = updates_per_task * args.num_tasks
    training = begin_training(args, tasks, batch.seeds)
    state = batch.load()
    if state is not None:
        training.restore(state)
    label = f"{args.dataset} {args.tasks} {args.activation}"
    progress = runlog.Progress(batch.start, end, label)
    task = None
    for before in range(batch.start, end, epoch_updates):
        step = before + epoch_updates
        number = before // updates_per_task
        is_new = before % updates_per_task == 0
        if is_new and all(batch.diverged()):
            for later in range(before + updates_per_task, end + 1, updates_per_task):
                batch.log_rows(later, training.last)
            break

        # start a task
        if is_new or task is None:
            tasks_of_seeds = [tasks.make(seed, number) for seed in batch.seeds]
            task = datasets.stack(tasks_of_seeds, training.images.device)
        if is_new:
            begin_task(args, training, batch, before, number, task)

        # learn
        losses, epoch_accuracy = learn_epoch(args, training, batch, before, task)
        note_divergence(batch, before, losses)
        training.online += epoch_accuracy
        is_fitted = training.fitted.isnan() & (epoch_accuracy >= args.threshold)
        updates_of_task = step - number * updates_per_task
        training.fitted = torch.where(is_fitted, updates_of_task, training.fitted)

        # measure
        if step // args.log_frequency > before // args.log_frequency or step == end:
            speed = progress.speed(step) * len(batch.seeds)
            values = {"losses/loss": losses.mean(0), "charts/epoch_accuracy": epoch_accuracy}
            values |= {"perf/updates_per_second": speed}
            values |= coefficients(training.learner.network)
            batch.log(step, values, skip_diverged=True)
            progress.value = f"task {number + 1}, accuracy {epoch_accuracy.mean():.3f}"
        progress.update(step)
        if step % updates_per_task == 0:
            progress.note(end_task(args, training, batch, step, number, task))

        # save
        if batch.save_is_due(step, step == end):
            batch.save(step, training.state())

    if args.plots:
        batch.draw(end, plots.draw_run)
    batch.finish()
    progress.close()


# ---- after the training --------------------------------------------------------------------------


def load_agent(folder: str | Path, device: str = "cpu") -> Classifier:
    """The network of a run's newest checkpoint, finished or not.

    It has no seed axis and maps pixels (batch, channels * height * width) in [0, 1] (those of the
    data set divided by their largest value) to logits (batch, outputs). Raises UserError like
    `runlog.load`, and if there is no checkpoint yet.
    """
    run = runlog.load(folder, Args)
    args = dataclasses.replace(run.config, compile=False)
    outputs = len(loading.weights_of(run, "learner")["network.head.bias"])
    shape = datasets.IMAGE_SHAPES[args.dataset]
    scale = 1.0  # the caller's pixels are scaled already
    with runlog.value_errors_are_user_errors():
        learner = Learner(args, shape, outputs, scale, args.seed, runlog.find_device(device))
    loading.restore(learner, run, "learner")
    return learner.network


def runs_of(args: Args) -> list:
    """The run of each seed."""
    env_id = f"{args.dataset}-{args.tasks}"
    return runlog.seed_runs(args, "continual_supervised", env_id=env_id)


def dashboard(args: Args) -> dict:
    """The TensorBoard and W&B panels for these runs (docs/dashboards.md)."""
    panels = [
        "accuracy on a task",
        "weight norm of each network",
        "gradient norm of each network",
        "rank of the tangent kernel",
        "neurons recycled by ReDo",
        "gradient norm of the coefficients",
        "updates per second",
    ]
    return plots.dashboards.sections(panels, ("classifier",), f"fc{len(args.widths)}")


def main(args: Args) -> None:
    tasks = validate(args)
    torch.set_flush_denormal(True)  # moments of dead units decay to denormals, which are slow
    torch.set_num_threads(args.threads or torch.get_num_threads())
    with runlog.open_batches(runs_of(args), args, sections=dashboard(args)) as batches:
        for batch in batches:
            train(args, tasks, batch)


if __name__ == "__main__":
    with runlog.exit_on_user_error():
        main(runlog.parse_args(Args))
