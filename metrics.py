"""Representation and value metrics for studying activation functions in deep RL.

Pure functions on tensors: no side effects, nothing drawn from the global RNG, any number of leading batch axes (seeds,
critics), written `*batch`. Input is float32 or float64, results keep its dtype. docs/metrics.md has the keys, units,
sources and traps. CR = arXiv 2507.14736, HR = arXiv 2406.09079, ReDo = arXiv 2302.12902, REDQ = arXiv 2101.05982.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]
Generator = torch.Generator | None
Limits = tuple[float, float] | None
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
KDE_CELLS = 16  # grid cells per bandwidth; the error bound in dead_neurons_kde needs 16
KDE_NEURONS, KDE_POINTS = 16, 64  # density curves of a network_report
NTK_OUTPUTS = ("sum", "true_class", "loss")
NTK_COLUMNS = 2**14  # parameters whose gradients are float64 at a time
KDE_CHUNK = 2**17  # elements per working array: fits the L2 cache, and bounds the memory


def _samples(x: Tensor, minimum: int = 1) -> Tensor:
    """x, detached; ValueError unless it is a float tensor (*batch, samples >= minimum, neurons >= 1)."""
    if not x.is_floating_point() or x.ndim < 2 or x.shape[-2] < minimum or x.shape[-1] < 1:
        raise ValueError(f"need float (*batch, samples >= {minimum}, neurons >= 1), got {x.dtype} {tuple(x.shape)}")
    return x.detach()


def _power_of_two(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """A power of two near the largest |x| over `dim` (which stay as axes of length 1); 1 where squares of x neither
    overflow nor vanish, so that dividing by it changes no bit of a usual result, and where x is 0 or not finite."""
    largest = torch.linalg.vector_norm(x, math.inf, dim, keepdim=True)
    info = torch.finfo(x.dtype)
    lowest_exponent = round(math.log2(info.tiny))
    limit = 2.0 ** (-0.4 * lowest_exponent)  # 2^50 for float32, 2^409 for float64: its square times any number of terms
    exponent = (torch.frexp(largest).exponent - 1).clamp_min(lowest_exponent)  # at least this: denormals may be flushed
    scale = torch.ldexp(torch.ones_like(largest), exponent)
    usual = ((largest >= 1 / limit) & (largest <= limit)) | (largest == 0) | ~largest.isfinite()
    return torch.where(usual, 1.0, scale)


def _norm(x: Tensor, dim: int) -> Tensor:
    """L2 norm over one axis; it overflows or vanishes only where the norm itself does."""
    scale = _power_of_two(x, dim)
    safe = (x / scale).norm(dim=dim) * scale.squeeze(dim)
    # a quotient lies differently in memory, so its sum may end in other bits: usual norms do not go through it
    return torch.where(scale.squeeze(dim) == 1, x.norm(dim=dim), safe)


def _lerp(low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    """torch.lerp, where high - low may overflow."""
    return torch.where((high - low).isfinite(), torch.lerp(low, high, weight), low * (1 - weight) + high * weight)


def channel_samples(h: Tensor, batch_dims: int = 0) -> Tensor:
    """Feature maps with positions as samples, as ReDo scores them: (*batch, n, C, H, W) -> (*batch, n * H * W, C).
    (*batch, samples, neurons) passes unchanged; any other number of axes raises ValueError.
    >>> channel_samples(torch.zeros(8, 32, 5, 4)).shape
    torch.Size([160, 32])
    """
    if h.ndim - batch_dims not in (2, 4):
        raise ValueError(f"expected 2 or 4 axes after {batch_dims} batch axes, got {tuple(h.shape)}")
    return h if h.ndim - batch_dims == 2 else h.movedim(-3, -1).flatten(batch_dims, -2)


def _jittered(z: Tensor, noise_variance: float, generator: Generator) -> Iterator[tuple]:
    """Yields (mean, jittered values minus mean), float64, (rows, samples); a row is one neuron of one batch entry."""
    # Batch entries share the noise: a seed measures the same alone as in a batch. The mean goes first, so that the
    # jitter of a neuron stuck at a large constant is not rounded away.
    num_samples, num_neurons = z.shape[-2:]
    if noise_variance < 0:
        raise ValueError(f"noise_variance must be >= 0, got {noise_variance}")
    generator = torch.Generator(z.device).manual_seed(0) if generator is None else generator
    noise = torch.randn(num_neurons, num_samples, generator=generator, device=z.device)
    rows = z.transpose(-1, -2).reshape(-1, num_samples)
    chunk = max(1, KDE_CHUNK // num_samples)
    for start in range(0, rows.shape[0], chunk):
        x = rows[start : start + chunk].double()
        scale = _power_of_two(x, -1)
        mean = (x / scale).mean(-1, keepdim=True) * scale
        neuron = torch.arange(start, start + x.shape[0], device=z.device) % num_neurons
        yield mean, x - mean + math.sqrt(noise_variance) * noise[neuron].double()


def _peak_density(x: Tensor) -> Tensor:
    """Largest KDE value over a row's own samples: (rows, samples) float64 -> (rows,). See dead_neurons_kde."""
    unit = _power_of_two(x, -1)
    x = x / unit
    h = x.shape[-1] ** -0.2 * x.std(-1, keepdim=True)  # ddof 1, like scipy
    u = (x - x.amin(-1, keepdim=True)) / h  # in bandwidths, from 0
    usable = u.isfinite().all(-1)
    u = torch.where(usable.unsqueeze(-1), u, 0.0)
    cell = (u * KDE_CELLS).floor()
    t = (u * KDE_CELLS - cell).float()  # float32 will do to pick the candidate; its density is computed in float64
    a, b, c = t + 1, t - 1, t - 2
    weights = (t * b * c / -6, a * b * c / 2, a * t * c / -2, a * t * b / 6)  # cubic Lagrange, nodes cell-1 .. cell+2
    cell = cell.long()
    length = 1 << (int(cell.max()) + 3 + 8 * KDE_CELLS).bit_length()  # 8 bandwidths of padding stop the wrap-around
    grid = torch.zeros(x.shape[0], length, device=x.device)
    for k, weight in enumerate(weights):
        grid[:, k:].scatter_add_(1, cell, weight)
    frequency = 2 * math.pi * torch.fft.rfftfreq(length, 1 / KDE_CELLS, device=x.device)
    smooth = torch.fft.irfft(torch.fft.rfft(grid) * torch.exp(frequency.square() / -2), n=length)
    estimate = sum(weight * smooth[:, k:].gather(1, cell) for k, weight in enumerate(weights))
    candidate = u.gather(1, estimate.argmax(-1, keepdim=True))
    density = torch.exp((u - candidate).square_().div_(-2)).mean(-1) / (h.squeeze(-1) * math.sqrt(2 * math.pi))
    return torch.where(usable, density / unit.squeeze(-1), torch.where(h.squeeze(-1) == 0, math.inf, math.nan))


def dead_neurons_kde(z: Tensor, omega: float = 20.0, noise_variance: float = 1e-5, generator: Generator = None) -> Pair:
    """Neurons whose activations have collapsed to a spike (HR Appendix B.1): dead iff max_j f(x_j) >= omega.

    x = z + N(0, noise_variance), h = n^(-1/5) std(x) (ddof 1), f(y) = 1/(n h) sum_i phi((y - x_i) / h), phi the
    standard normal density: `scipy.stats.gaussian_kde(x, bw_method=n**-0.2)` evaluated at its own samples. z: (*batch,
    samples >= 2, neurons), after the non-linearity. generator draws the jitter, (neurons, samples), shared by the
    batch entries; None: a fresh one, seed 0, on z's device. Returns dead (bool) and the peak density (1 / unit of z),
    (*batch, neurons). NaN or inf: peak NaN, not dead; no spread at all (needs noise_variance 0): peak inf, dead. omega
    is meant for tanh, where 20 says std < about 0.02; unbounded units depend on scale. Wrong shapes: ValueError.
    O(n + g log g) per neuron, not O(n^2): a neuron spans at most g/16 <= sqrt(2n) n^(1/5) bandwidths, whatever its
    outliers, so a grid of step s = h/16 is small. Cubic weights spread each sample over 4 nodes, an FFT smooths them,
    the same weights read the grid at the samples; the density is then summed exactly at the best one: never above the
    maximum. How far below: cubic interpolation errs by 0.0235 s^4 |phi''''|, twice, with sum |w| <= 1.25. A stretch of
    one h with m samples has f >= m phi(1) / (n h) at each, so m <= n h f_max / phi(1); sup |phi''''| summed over the
    stretches bounds the error by 1.7e-5 f_max; the wrong sample can win by twice that: peak >= (1 - 4e-5) max f(x_j).
    >>> z = torch.stack([torch.ones(64), torch.linspace(-1, 1, 64)], dim=-1)  # saturated, and in use
    >>> dead_neurons_kde(z)[0]
    tensor([ True, False])
    """
    z = _samples(z, 2)
    peaks = torch.cat([_peak_density(x) for _, x in _jittered(z, noise_variance, generator)]).view_as(z[..., 0, :])
    return peaks >= omega, peaks.to(z.dtype)


def dead_neurons_std(z: Tensor, threshold: float = 0.02) -> Pair:
    """Neurons that hardly vary: dead iff std(z) < threshold (ddof 1). For a Gaussian neuron 0.02 is what omega = 20 of
    dead_neurons_kde says, since its density peaks at 1 / (sqrt(2 pi) std); but outliers count here. z: (*batch, samples
    >= 2, neurons). Returns dead (bool) and std (unit of z), (*batch, neurons). NaN: not dead. Wrong shape: ValueError.
    >>> dead_neurons_std(torch.tensor([[1.0, 0.0], [1.01, 1.0]]))[0]
    tensor([ True, False])
    """
    z = _samples(z, 2)
    scale = _power_of_two(z, -2)
    std = (z / scale).std(-2) * scale.squeeze(-2)
    return std < threshold, std


def kde_curves(
    z: Tensor, num_points: int = 256, noise_variance: float = 1e-5, limits: Limits = None, generator: Generator = None
) -> Pair:
    """Curves of the density in dead_neurons_kde, for plots (HR Figs. 3, 6, 10, 11): (grid, density).
    z: (*batch, samples >= 2, neurons) -> (*batch, neurons, num_points) each. The grid spans `limits`, or each neuron's
    jittered samples and 3 bandwidths either way. O(samples * num_points) per neuron: choose neurons first.
    >>> grid, density = kde_curves(torch.linspace(-1, 1, 100).unsqueeze(-1))
    >>> round(torch.trapezoid(density, grid).item(), 2)
    1.0
    """
    z, curves = _samples(z, 2), []
    unit = torch.linspace(0, 1, num_points, dtype=torch.float64, device=z.device)
    for means, chunk in _jittered(z, noise_variance, generator):
        for mean, x in zip(means, chunk):
            scale = _power_of_two(x, -1)
            x = x / scale
            h = x.shape[0] ** -0.2 * x.std()
            low, high = (x.min() - 3 * h, x.max() + 3 * h) if limits is None else ((v - mean) / scale for v in limits)
            points = low + (high - low) * unit
            density = torch.exp(((points.unsqueeze(-1) - x) / h).square() / -2).mean(-1) / (h * math.sqrt(2 * math.pi))
            curves.append(torch.stack([points * scale + mean, density / scale]))
    return tuple(torch.stack(curves, dim=1).reshape(2, *z.shape[:-2], z.shape[-1], num_points).to(z.dtype))


def dormant_neurons(h: Tensor, tau: float = 0.025, subtract_mean: bool = False) -> Pair:
    """ReDo dormancy: s_i = E|h_i| / (mean_k E|h_k| + 1e-9), dormant iff s_i <= tau (dopamine, weight_recyclers.py).

    h: (*batch, samples, neurons) after the activation (convolutions: channel_samples first). Returns dormant (bool)
    and the scores (no unit), (*batch, neurons). A saturated tanh has the largest plain score there is;
    subtract_mean=True takes a neuron's mean off first (dopamine's `sub_mean_score`) and sees it. NaN: not dormant.
    Wrong shape: ValueError.
    >>> h = torch.tensor([[1.0, 0.5, 0.0], [1.0, -0.5, 0.0]])  # saturated, in use, zero
    >>> dormant_neurons(h)[0], dormant_neurons(h, subtract_mean=True)[0]
    (tensor([False, False,  True]), tensor([ True, False,  True]))
    """
    h = _samples(h)
    scale = _power_of_two(h, (-2, -1))
    h = h / scale
    activity = (h - h.mean(-2, keepdim=True) if subtract_mean else h).abs().mean(-2)
    scores = activity / (activity.mean(-1, keepdim=True) + 1e-9 / scale.squeeze(-1))
    return scores <= tau, scores


def hidden_bias(h: Tensor, dead: Tensor, weight: Tensor) -> Pair:
    """What the dead and what the live neurons give to the next layer, its bias aside (HR Theorem 4.1, Fig. 4).

    (h * dead) W^T and (h * ~dead) W^T. Dead neurons are constant, so their part is the constant mean(h_dead) W_dead^T,
    a hidden bias; it is 0 for ReLU neurons dead at 0. h: (*batch, samples, neurons); dead: (*batch, neurons) bool;
    weight: (*batch, outputs, neurons). Returns two (*batch, samples, outputs), unit of the outputs. Misfit: ValueError.
    >>> hidden_bias(torch.tensor([[1.0, 2.0]]), torch.tensor([True, False]), torch.tensor([[0.5, 10.0]]))
    (tensor([[0.5000]]), tensor([[20.]]))
    """
    h, shape = _samples(h), (*h.shape[:-2], h.shape[-1])
    if (
        dead.dtype != torch.bool
        or dead.shape != shape
        or weight.shape != (*shape[:-1], *weight.shape[-2:-1], shape[-1])
    ):
        got = f"{dead.dtype} {tuple(dead.shape)} and {tuple(weight.shape)}"
        raise ValueError(f"need dead bool {shape} and weight {(*shape[:-1], 'outputs', shape[-1])}, got {got}")
    dead = dead.unsqueeze(-2)  # masked_fill, not a product: a NaN of one part stays out of the other
    return h.masked_fill(~dead, 0.0) @ weight.detach().mT, h.masked_fill(dead, 0.0) @ weight.detach().mT


def _scaled_singular_values(features: Tensor) -> Pair:
    """singular_values divided by a power of two, and that power (*batch, 1): their squares are safe."""
    x = _samples(features).double()
    usable = x.isfinite().flatten(-2).all(-1)[..., None]
    x = torch.where(usable.unsqueeze(-1), x, 0.0)
    scale = _power_of_two(x, (-2, -1))
    x = x / scale
    gram = x.mT @ x if x.shape[-1] <= x.shape[-2] else x @ x.mT
    sigma = torch.linalg.eigvalsh(gram).clamp_min(0.0).sqrt().flip(-1)
    return torch.where(usable, sigma, math.nan), scale.squeeze(-1)


def singular_values(features: Tensor) -> Tensor:
    """Singular values, decreasing, float64: (*batch, samples, features) -> (*batch, min(samples, features)).

    Roots of the eigenvalues of the smaller Gram matrix, formed in float64: half the time of an SVD on CPU. The price:
    a value that is really 0 comes out as up to sqrt(eps) = 1.5e-8 of the largest, 4e-6 of the sum for 256 of them,
    which moves srank only if a cumulative share lies that close to 1 - delta. Entries with NaN or inf give NaN.
    >>> singular_values(torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]))
    tensor([4., 3.], dtype=torch.float64)
    """
    sigma, scale = _scaled_singular_values(features)
    return sigma * scale


def effective_rank(features: Tensor, delta: float = 0.01) -> Tensor:
    """srank, the smallest k with sum_{i<=k} sigma_i >= (1 - delta) sum_i sigma_i (HR B.2; arXiv 2010.14498).

    On singular values, not squared. features: (*batch, samples, features), samples >= features or they cap the rank.
    Returns (*batch), whole numbers in features' dtype: 1 for all-zero features (the paper's formula), NaN for
    non-finite. delta outside (0, 1) raises ValueError; below 1e-4 it comes near the accuracy of singular_values.
    >>> effective_rank(torch.diag(torch.tensor([100.0, 1.0, 0.5])))
    tensor(2.)
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie in (0, 1), got {delta}")
    cumulative = _scaled_singular_values(features)[0].cumsum(-1)
    rank = (cumulative < (1 - delta) * cumulative[..., -1:]).sum(-1) + 1.0
    return torch.where(cumulative[..., -1].isnan(), math.nan, rank).to(features.dtype)


def stable_rank(features: Tensor) -> Tensor:
    """||Phi||_F^2 / ||Phi||_2^2, the textbook one: (*batch, samples, features) -> (*batch); 0 if all zero.
    >>> stable_rank(torch.diag(torch.tensor([2.0, 1.0, 1.0])))
    tensor(1.5000)
    """
    squares = _scaled_singular_values(features)[0].square()
    return (squares.sum(-1) / squares[..., 0].clamp_min(1e-300)).to(features.dtype)


def entropy_rank(features: Tensor) -> Tensor:
    """exp(-sum p log p), p = sigma / sum sigma (Roy 2007): (*batch, samples, features) -> (*batch); 0 if all zero.
    >>> entropy_rank(torch.eye(4))
    tensor(4.)
    """
    sigma = _scaled_singular_values(features)[0]
    p = sigma / sigma.sum(-1, keepdim=True).clamp_min(1e-300)
    return (torch.exp(-torch.xlogy(p, p).sum(-1)) * (sigma[..., 0] != 0)).to(features.dtype)


def ntk_gram(
    network: nn.Module,
    inputs: tuple,
    batch_dims: int = 0,
    sample_dim: int | None = None,
    output: str | Callable[[Tensor], Tensor] = "sum",
    targets: Tensor | None = None,
    coefficients: bool = True,
) -> Tensor:
    """Empirical neural tangent kernel K_ij = sum_theta dy_i/dtheta dy_j/dtheta of a scalar output y (arXiv 1806.07572).

    network(*inputs) is (*batch, n) or (*batch, n, outputs); each input has its n samples at axis sample_dim (None:
    batch_dims), parameters have batch_dims leading axes. output names y: "sum" of the outputs, "true_class" (the logit
    of targets (*batch, n), int64), "loss" (cross-entropy of targets: K is then the gradients' second moment), or any
    function of the outputs. theta: the trainable parameters, with the activations' own only if coefficients. Returns
    (*batch, n, n), float64. Samples must not interact (no batch norm). n times the parameters' memory, at once.
    Raises ValueError for another name, missing targets, or without parameters.
    >>> ntk_gram(nn.Linear(2, 1, bias=False), (torch.tensor([[1.0, 2.0], [3.0, 4.0]]),))
    tensor([[ 5., 11.],
            [11., 25.]], dtype=torch.float64)
    """
    gram, scale = _scaled_ntk_gram(network, inputs, batch_dims, sample_dim, output, targets, coefficients)
    return gram * scale * scale


def _scaled_ntk_gram(network, inputs, batch_dims, sample_dim, output, targets, coefficients) -> Pair:
    """ntk_gram divided by the square of a power of two, and that power (*batch, 1, 1)."""
    if isinstance(output, str) and (output not in NTK_OUTPUTS or (output != "sum" and targets is None)):
        raise ValueError(f"output {output!r}: must be one of {', '.join(NTK_OUTPUTS)}, and all but sum need targets")
    dim = batch_dims if sample_dim is None else sample_dim
    branches = [branch for module in network.modules() for branch in getattr(module, "branches", ())]
    own = {id(p) for branch in branches for p in branch.activation.parameters()}
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    theta = {name: p.detach() for name, p in named.items() if coefficients or id(p) not in own}
    if not theta:
        raise ValueError(f"{type(network).__name__} has no such parameters")

    def scalar(theta, target, *sample):  # the batch entries are independent: the gradient of their sum is each one's
        y = torch.func.functional_call(network, theta, tuple(x.unsqueeze(dim) for x in sample))
        if callable(output):
            y = output(y)
        elif output == "true_class":
            y = y.gather(-1, target[..., None, None])
        elif output == "loss":
            y = -y.log_softmax(-1).gather(-1, target[..., None, None])
        return y.sum()

    in_dims = (None, None if targets is None else -1, *[dim] * len(inputs))
    gradients = torch.func.vmap(torch.func.grad(scalar), in_dims)(theta, targets, *inputs)
    rows = []  # (*batch, n, entries) of each parameter
    for gradient in gradients.values():  # (n, *batch, ...)
        flat = gradient.flatten(1 + batch_dims) if gradient.ndim > 1 + batch_dims else gradient.unsqueeze(-1)
        rows.append(flat.movedim(0, -2))
    largest = torch.stack([torch.linalg.vector_norm(x, math.inf, (-2, -1)) for x in rows], -1).double()
    scale = _power_of_two(largest, -1).unsqueeze(-1)
    gram = 0.0
    for x in rows:
        for part in x.split(NTK_COLUMNS, -1):  # float64 for a part at a time
            part = part.double() / scale
            gram = gram + part @ part.mT
    return gram, scale


def ntk_rank(
    network: nn.Module,
    inputs: tuple,
    batch_dims: int = 0,
    sample_dim: int | None = None,
    output: str | Callable[[Tensor], Tensor] = "sum",
    targets: Tensor | None = None,
    coefficients: bool = True,
) -> dict[str, Tensor]:
    """Ranks of the empirical NTK; arguments of ntk_gram. Values are (*batch), float64, of its eigenvalues l:

    srank, smallest k whose k largest l are >= 99 % of their sum; entropy_rank = exp(-sum p log p), p = l / sum l (as
    C-CHAIN reports them, Tang et al. 2025); trace = sum l; condition = max l / min l (inf if K is singular in float64,
    as where samples outnumber parameters). Non-finite gradients: NaN; all zero: the ranks are 0. srank and
    entropy_rank do not change with the scale of y.
    >>> ntk_rank(nn.Linear(2, 1, bias=False), (torch.eye(2),))["entropy_rank"]
    tensor(2., dtype=torch.float64)
    """
    gram, scale = _scaled_ntk_gram(network, inputs, batch_dims, sample_dim, output, targets, coefficients)
    usable = gram.isfinite().flatten(-2).all(-1)
    gram = torch.where(usable[..., None, None], gram, 0.0)
    values = torch.linalg.eigvalsh((gram + gram.mT) / 2).flip(-1)
    noise = values[..., :1] * values.shape[-1] * torch.finfo(values.dtype).eps  # as in numpy's matrix_rank
    values = torch.where(values > noise, values, 0.0)
    total = values.sum(-1)
    p = values / total.clamp_min(1e-300).unsqueeze(-1)
    ranks = {
        "srank": (values.cumsum(-1) < 0.99 * total.unsqueeze(-1)).sum(-1) + 1.0,
        "entropy_rank": torch.exp(-torch.xlogy(p, p).sum(-1)),
    }
    found = {name: torch.where(total > 0, rank, 0.0) for name, rank in ranks.items()}
    condition = torch.where(values[..., -1] > 0, values[..., 0] / values[..., -1], math.inf)
    scale = scale[..., 0, 0]
    found |= {"trace": total * scale * scale, "condition": condition}
    return {name: torch.where(usable, value, math.nan) for name, value in found.items()}


def feature_norm(features: Tensor) -> Tensor:
    """Mean L2 norm of the samples' features, mean_i ||phi(x_i)||_2: (*batch, samples, features) -> (*batch).
    >>> feature_norm(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    tensor(3.)
    """
    x = _samples(features)
    scale = _power_of_two(x, (-2, -1))
    return (x / scale).norm(dim=-1).mean(-1) * scale[..., 0, 0]


def weight_norm(tensors: Iterable[Tensor], batch_dims: int = 0) -> Tensor:
    """Global L2 norm sqrt(sum_k ||w_k||^2) of tensors (*batch, ...) sharing `batch_dims` leading axes: (*batch).
    Raises ValueError for an empty list or too few axes.
    >>> weight_norm([torch.tensor([[3.0], [6.0]]), torch.tensor([4.0, 8.0])], batch_dims=1)
    tensor([ 5., 10.])
    """
    tensors = [x.detach() for x in tensors]
    if min((x.ndim for x in tensors), default=-1) < batch_dims:
        raise ValueError(f"expected at least one tensor, each with {batch_dims} leading batch axes")
    return _norm(torch.stack([_norm(x.reshape(*x.shape[:batch_dims], -1), -1) for x in tensors]), 0)


def mean_gradients(loss, batch: dict[str, Tensor], parameters: list, size: int, dim: int = 0) -> list[Tensor]:
    """Gradients of a loss that is a mean over samples, added up from pieces of at most `size` samples, which bounds the
    memory. loss: dict like `batch` -> scalar; samples are axis `dim` of every tensor in batch.
    >>> w = nn.Parameter(torch.tensor(2.0))
    >>> mean_gradients(lambda part: (w * part["x"]).square().mean(), {"x": torch.arange(3.0)}, [w], size=2)
    [tensor(6.6667)]
    """
    samples, grads = next(iter(batch.values())).shape[dim], [torch.zeros_like(p) for p in parameters]
    for start in range(0, samples, size):
        part = {name: x.narrow(dim, start, min(size, samples - start)) for name, x in batch.items()}
        share = min(size, samples - start) / samples
        grads = [total + new for total, new in zip(grads, torch.autograd.grad(loss(part) * share, parameters))]
    return grads


def named_gradients(network: nn.Module, loss, batch: Sequence[Tensor], size: int) -> dict[str, Tensor]:
    """mean_gradients of loss(*batch) for the trained parameters of a network, by their names."""
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    columns = dict(enumerate(batch))
    return dict(zip(trained, mean_gradients(lambda x: loss(*x.values()), columns, list(trained.values()), size)))


def gradient_norm(tensors: Iterable[Tensor], batch_dims: int = 0) -> Tensor:
    """Global L2 norm of the `.grad` of parameters (*batch, ...): (*batch). Call it before clipping.
    Parameters without a gradient are left out; ValueError if none has one (gradient tensors: use weight_norm).
    >>> (w := nn.Parameter(torch.ones(4))).sum().backward()
    >>> gradient_norm([w])
    tensor(2.)
    """
    gradients = [x.grad for x in tensors if x.grad is not None]
    if not gradients:
        raise ValueError("no tensor has a .grad: call after backward(), or give gradient tensors to weight_norm")
    return weight_norm(gradients, batch_dims)


def first_episodes(values: Tensor, dones: Tensor, number: int, reduce=torch.sum) -> tuple[Tensor, list[int]]:
    """`reduce` (torch.sum: returns) of `values` over each of the first `number` episodes: values, dones (batch, time),
    with at least `number` ends in every row -> ((batch, number), [steps up to the last of these ends]).
    >>> first_episodes(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[0, 1, 1, 0]]), number=2)
    (tensor([[3., 3.]]), [3])
    """
    rows, lengths = [], []
    for row, done in zip(values, dones):
        stops = (done.nonzero().squeeze(-1)[:number] + 1).tolist()
        rows.append(torch.stack([reduce(row[i:j], -1) for i, j in zip([0, *stops], stops)]))
        lengths.append(stops[-1])
    return torch.stack(rows), lengths


def discounted_returns(
    rewards: Tensor,
    terminations: Tensor,
    truncations: Tensor,
    gamma: float,
    *,
    log_probs: Tensor | None = None,
    alpha: float | Tensor | None = None,
    bootstrap_values: Tensor | None = None,
) -> Pair:
    """Discounted (soft) Monte-Carlo returns of episodes laid end to end, and the weight of what a cut leaves out.

    G_t = r_t + gamma (1 - termination_t) (G_{t+1} - alpha log pi(a_{t+1} | s_{t+1})): later actions' entropy counts,
    that of a_t does not, as in SAC's Q and REDQ's bias_utils.py. At a cut (a truncation, or the last step; terminations
    win) the last bracket is bootstrap_values_t, the soft value of the true next state, or 0 without them. All tensors
    (*batch, time), alpha a number or (*batch). Returns (returns, tail_weight), (*batch, time); tail_weight =
    gamma^(steps to the cut), 0 if nothing is missing. Unequal shapes, log_probs without alpha: ValueError.
    >>> discounted_returns(torch.ones(3), torch.tensor([0, 1, 0]), torch.zeros(3), gamma=0.5)
    (tensor([1.5000, 1.0000, 1.0000]), tensor([0.0000, 0.0000, 0.5000]))
    """
    for x in (terminations, truncations, log_probs, bootstrap_values):
        if x is not None and x.shape != rewards.shape:
            raise ValueError(f"all must be (*batch, time) like rewards {tuple(rewards.shape)}, got {tuple(x.shape)}")
    if (log_probs is None) != (alpha is None):
        raise ValueError("log_probs and alpha belong together: give both or neither")
    r, terminated, cut = rewards.detach().double(), terminations.bool(), truncations.bool().clone()
    cut[..., -1:] = True
    tail = torch.zeros_like(r) if bootstrap_values is None else bootstrap_values.detach().double()
    alpha = torch.as_tensor(0.0 if alpha is None else alpha, dtype=r.dtype, device=r.device).detach().unsqueeze(-1)
    entropy = torch.zeros_like(r) if log_probs is None else -alpha * log_probs.detach()
    returns, tail_weight = torch.empty_like(r), torch.empty_like(r)
    g = w = r.new_zeros(r.shape[:-1])
    for t in range(r.shape[-1] - 1, -1, -1):
        g = torch.where(cut[..., t], tail[..., t], g)
        w = torch.where(cut[..., t], float(bootstrap_values is None), w)
        g = r[..., t] + gamma * torch.where(terminated[..., t], 0.0, g)
        w = gamma * torch.where(terminated[..., t], 0.0, w)
        returns[..., t], tail_weight[..., t] = g, w
        g = g + entropy[..., t]  # the step before sees G_t - alpha log pi(a_t | s_t)
    return returns.to(rewards.dtype), tail_weight.to(rewards.dtype)


def _mean_of_kept(x: Tensor, kept: Tensor, num_kept: Tensor) -> Tensor:
    x = torch.where(kept, x, 0.0)
    scale = _power_of_two(x, -1)
    return (x / scale).sum(-1) / num_kept * scale.squeeze(-1)


def q_overestimation(
    q: Tensor,
    rewards: Tensor,
    terminations: Tensor,
    truncations: Tensor,
    gamma: float,
    *,
    log_probs: Tensor | None = None,
    alpha: float | Tensor | None = None,
    bootstrap_values: Tensor | None = None,
    fallback_values: Tensor | None = None,
    tail_tolerance: float = 0.05,
    floor: float = 10.0,
) -> dict[str, Tensor]:
    """Overestimation Q(s_t, a_t) - G_t on fresh episodes of the stochastic policy (REDQ, bias_utils.py).

    q: (*batch, time), the estimate under study for the actions taken; the rest is for discounted_returns. A state is
    kept if its tail_weight <= tail_tolerance: at gamma 0.99 the last 298 steps before a cut go, 702 of 1,000 stay, and
    of 200 none (0.99^200 = 0.13): pass bootstrap_values there, with which all are kept. fallback_values are the same,
    but used only in batch entries of which no state would stay. Returns a dict: errors, returns, kept, (*batch, time);
    over kept states (NaN if none), (*batch): mean and std (ddof 0) of errors, normalised = mean of error / max(|G|,
    floor) state by state as in REDQ, num_kept; bootstrapped, (*batch) bool (False: cut states left out).
    >>> end = torch.tensor([False, True])
    >>> q_overestimation(torch.tensor([2.5, 2.0]), torch.ones(2), end, torch.zeros(2), gamma=0.5)["mean"]
    tensor(1.)
    """
    if q.shape != rewards.shape:
        raise ValueError(f"q must have the shape of rewards {tuple(rewards.shape)}, got {tuple(q.shape)}")
    arguments, soft = (rewards, terminations, truncations, gamma), {"log_probs": log_probs, "alpha": alpha}
    returns, tail_weight = discounted_returns(*arguments, **soft, bootstrap_values=bootstrap_values)
    bootstrapped = torch.full_like(rewards[..., 0], bootstrap_values is not None, dtype=torch.bool)
    if fallback_values is not None:
        bootstrapped |= (tail_weight > tail_tolerance).all(-1)
        pairs = zip((returns, tail_weight), discounted_returns(*arguments, **soft, bootstrap_values=fallback_values))
        returns, tail_weight = (torch.where(bootstrapped.unsqueeze(-1), new, old) for old, new in pairs)
    kept, errors = tail_weight <= tail_tolerance, q.detach() - returns
    num_kept, normalised = kept.sum(-1), errors / returns.abs().clamp_min(floor)
    mean, normalised = (_mean_of_kept(x, kept, num_kept) for x in (errors, normalised))
    deviations = torch.where(kept, errors - mean.unsqueeze(-1), 0.0)
    scale = _power_of_two(deviations, -1)
    std = ((deviations / scale).square().sum(-1) / num_kept).sqrt() * scale.squeeze(-1)
    values = {"errors": errors, "returns": returns, "kept": kept, "mean": mean, "std": std, "normalised": normalised}
    return values | {"num_kept": num_kept, "bootstrapped": bootstrapped}


def overestimation_of_first(
    lengths: Sequence[int],
    gamma: float,
    alpha: Tensor,
    q,
    rewards,
    terminations,
    truncations,
    log_probs,
    fallback_values,
) -> list[dict[str, float]]:
    """q_overestimation of batch entries of unequal length: tensors (batch, time), entry i of which has lengths[i]
    steps; alpha (batch, 1). Returns for each entry overestimation/mean, std and normalised."""
    found = []
    for i, length in enumerate(lengths):
        columns = (q, rewards, terminations, truncations, log_probs, fallback_values)
        *episode, log_prob, fallback = (x[i, :length] for x in columns)
        bias = q_overestimation(*episode, gamma, log_probs=log_prob, alpha=alpha[i], fallback_values=fallback)
        found.append({f"overestimation/{key}": bias[key].item() for key in ("mean", "std", "normalised")})
    return found


def sequence_scores(history: Sequence[Sequence[float]], task_steps: int) -> dict[str, float]:
    """Plasticity and forgetting over tasks learnt one after the other, as of the newest evaluation.

    history: a row (step, score of task 1, ..., score of task n) for each evaluation so far, of a score where more is
    better. Task k is trained in the steps ((k - 1) T, k T], T = task_steps, and evaluated at its end k T too.
    Returns sequence/average, the mean score over all n tasks now; and, where task k ends at this step,
    sequence/task<k>/end_score, its score now, sequence/task<k>/mean_score, the mean over the evaluations in its steps
    (the area under its learning curve over T, as in Continual World, 2105.10919; learnt alone: the mean over the run),
    and sequence/plasticity, the mean of the mean scores of the tasks that have ended. Of each task that ended before:
    sequence/task<k>/forgetting = end score - score now; sequence/forgetting, their mean, is the negative of the
    backward transfer of Lopez-Paz and Ranzato 2017 (1706.08840): below 0 if old tasks have become better.
    >>> sequence_scores([(10, 0.2, 0.0), (20, 0.6, 0.1), (30, 0.5, 0.3)], task_steps=20)["sequence/forgetting"]
    0.09999999999999998
    """
    rows = torch.tensor(history, dtype=torch.float64)
    (step, *now), (steps, scores) = rows[-1].tolist(), (rows[:, 0], rows[:, 1:])
    values, forgetting, plasticity = {"sequence/average": sum(now) / len(now)}, [], []
    for k, score in enumerate(now):
        phase = scores[(steps > k * task_steps) & (steps <= (k + 1) * task_steps), k]
        if step >= (k + 1) * task_steps:
            plasticity.append(phase.mean().item())
        if step > (k + 1) * task_steps:
            forgetting.append(phase[-1].item() - score)
            values[f"sequence/task{k + 1}/forgetting"] = forgetting[-1]
        if step == (k + 1) * task_steps:
            values |= {f"sequence/task{k + 1}/end_score": score, f"sequence/task{k + 1}/mean_score": plasticity[-1]}
            values["sequence/plasticity"] = sum(plasticity) / len(plasticity)
    return values | ({"sequence/forgetting": sum(forgetting) / len(forgetting)} if forgetting else {})


def preactivation_quantiles(z: Tensor, q: tuple[float, ...] = QUANTILES) -> Tensor:
    """Quantiles over samples and neurons, interpolated linearly: (*batch, samples, neurons) -> (*batch, len(q)).
    By sorting, so without torch.quantile's limit of 2^24 elements. NaN gives NaN; q outside [0, 1] raises ValueError.
    >>> preactivation_quantiles(torch.arange(5.0).unsqueeze(-1), (0.5, 0.625))
    tensor([2.0000, 2.5000])
    """
    if not all(0 <= x <= 1 for x in q):
        raise ValueError(f"quantiles must lie in [0, 1], got {q}")
    ordered = _samples(z).flatten(-2).sort(-1).values
    position = torch.tensor(q, dtype=torch.float64, device=z.device) * (ordered.shape[-1] - 1)
    low, high = (ordered[..., i.long()].double() for i in (position.floor(), position.ceil()))
    return torch.where(ordered[..., -1:].isnan(), math.nan, _lerp(low, high, position.frac())).to(z.dtype)


def histogram(z: Tensor, bins: int = 64, limits: Limits = None) -> Pair:
    """Histogram over samples and neurons, as numpy's: (*batch, samples, neurons) -> counts (*batch, bins), edges.
    Edges (*batch, bins + 1) span `limits`, or the finite values. Values outside and NaN are not counted.
    >>> histogram(torch.tensor([[0.0, 1.0], [1.0, 4.0]]), bins=2)
    (tensor([3, 1]), tensor([0., 2., 4.]))
    """
    x = _samples(z).flatten(-2)
    low = torch.where(x.isfinite(), x, math.inf).amin(-1, keepdim=True)
    high = torch.where(x.isfinite(), x, -math.inf).amax(-1, keepdim=True)
    info = torch.finfo(x.dtype)
    spacing = low.abs() * info.eps * bins  # below it the bins of one value would fall together
    half = torch.where(spacing > 1, spacing, 0.5)
    lower, upper = (low - half).clamp_min(info.min), (high + half).clamp_max(info.max)
    is_constant = low == high
    low, high = torch.where(is_constant, lower, low), torch.where(is_constant, upper, high)
    if limits is not None:
        low, high = (torch.full_like(low, v) for v in limits)
    edges = _lerp(low, high, torch.linspace(0, 1, bins + 1, dtype=x.dtype, device=x.device))
    index = torch.searchsorted(edges[..., 1:-1].contiguous(), x, right=True)
    counts = torch.zeros(*x.shape[:-1], bins, dtype=torch.int64, device=x.device)
    return counts.scatter_add_(-1, index, ((x >= low) & (x <= high)).long()), edges


def rational_health(
    numerator: Tensor, denominator: Tensor, c: Tensor | None, q_x: Tensor, f_x: Tensor, batch_dims: int = 0
) -> dict[str, Tensor]:
    """Failure signatures of a rational f = P/Q: largest |a_i|, |b_j| and |f(x)|, smallest Q(x) and c (None: no key).

    numerator, denominator (*batch, coefficients); c, q_x = Q(x) and f_x = f(x) (*batch, ...). Values are (*batch).
    >>> rational_health(torch.tensor([1.0, -3.0]), torch.tensor([0.5]), None, torch.ones(4), torch.zeros(4))
    {'a_max': tensor(3.), 'b_max': tensor(0.5000), 'f_max': tensor(0.), 'q_min': tensor(1.)}
    """
    values = {"a_max": numerator, "b_max": denominator, "f_max": f_x, "q_min": q_x, "c_min": c}
    flat = {k: x.detach().reshape(*x.shape[:batch_dims], -1) for k, x in values.items() if x is not None}
    return {k: x.abs().amax(-1) if k.endswith("max") else x.amin(-1) for k, x in flat.items()}


@dataclass
class LayerRecord:
    """A hidden layer's last forward pass, detached: input and output of each branch's activation, and its output."""

    pre_activations: list[Tensor] = field(default_factory=list)
    branch_outputs: list[Tensor] = field(default_factory=list)
    output: Tensor | None = None


@contextmanager
def record_layers(network: nn.Module) -> Iterator[dict[str, LayerRecord]]:
    """Yields name -> LayerRecord of every submodule with `branches`, filled by each forward pass inside the `with`.

    Hooks sit on the activation modules and are removed on exit, on exceptions too; mode, parameters and RNG stay as
    they are. A module shared by layers or branches is recorded where it is called. Call the eager module, not a
    compiled one. ValueError without any such layer, RuntimeError if a layer bypasses the activation of a branch.
    """
    layers = {name: module for name, module in network.named_modules() if hasattr(module, "branches")}
    if not layers:
        raise ValueError(f"{type(network).__name__} has no submodule with `branches`")
    records, running = {}, LayerRecord()  # running: the layer under way

    def start(module, args):
        nonlocal running
        running = LayerRecord()

    def activation(module, args, output):
        running.pre_activations.append(args[0].detach())
        running.branch_outputs.append(output.detach())

    def finish(module, output, name):
        if len(running.pre_activations) != len(module.branches):
            raise RuntimeError(f"layer {name!r} must call the activation of each of its branches once per forward")
        running.output = output.detach()
        records[name] = running
        start(module, ())  # whatever runs between layers is no part of this one

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_pre_hook(start).remove)
            hooks.callback(layer.register_forward_hook(lambda m, _, output, name=name: finish(m, output, name)).remove)
        for module in {branch.activation for layer in layers.values() for branch in layer.branches}:
            hooks.callback(module.register_forward_hook(activation).remove)
        yield records


def _subset(x: Tensor, batch_dims: int, generator: torch.Generator, max_samples: int) -> Tensor:
    """channel_samples of x; beyond max_samples a random subset of them, the same for all batch entries."""
    x = channel_samples(x, batch_dims)
    chosen = torch.randperm(x.shape[-2], generator=generator, device=x.device)[:max_samples]
    return x if x.shape[-2] <= max_samples else x.index_select(-2, chosen)


def layer_metrics(
    record: LayerRecord, batch_dims: int = 0, generator: Generator = None, max_samples: int = 2_048
) -> dict[str, Tensor]:
    """Metrics of one recorded layer, name -> (*batch), with the default omega, tau and delta.
    dead_share (KDE), dead_share_std, dormant_share, dormant_share_centred, srank, feature_norm, preact_q01 ..
    preact_q99 (branches pooled) and, of several branches, branch0_dead_share ... Tensors (*batch, samples, neurons) or
    (*batch, samples, C, H, W), where neurons are channels (channel_samples). Beyond max_samples: a random subset,
    shared by the batch.
    >>> z = torch.linspace(-3, 3, 100).unsqueeze(-1)
    >>> layer_metrics(LayerRecord([z], [z.tanh()], z.tanh()))["dead_share"]
    tensor(0.)
    """
    generator = torch.Generator(record.output.device).manual_seed(0) if generator is None else generator
    subset = functools.partial(_subset, batch_dims=batch_dims, generator=generator, max_samples=max_samples)
    output = subset(record.output)
    quantiles = preactivation_quantiles(torch.cat([subset(x) for x in record.pre_activations], dim=-1))
    masks = {
        "dead_share": dead_neurons_kde(output, generator=generator)[0],
        "dead_share_std": dead_neurons_std(output)[0],
        "dormant_share": dormant_neurons(output)[0],
        "dormant_share_centred": dormant_neurons(output, subtract_mean=True)[0],
    }
    for i, branch in enumerate(record.branch_outputs if len(record.branch_outputs) > 1 else []):
        masks[f"branch{i}_dead_share"] = dead_neurons_kde(subset(branch), generator=generator)[0]
    values = {name: mask.to(output.dtype).mean(-1) for name, mask in masks.items()}
    values |= {"srank": effective_rank(output), "feature_norm": feature_norm(output)}
    return values | {f"preact_q{round(100 * q):02d}": quantiles[..., i] for i, q in enumerate(QUANTILES)}


@dataclass
class NetworkReport:
    """What network_report found. Keys are `conv1/<name>`, ..., `fc1/<name>`, ... for the hidden layers in order, or a
    bare name."""

    scalars: dict[str, Tensor] = field(default_factory=dict)  # (*batch)
    histograms: dict[str, Pair] = field(default_factory=dict)  # counts (*batch, bins), edges (*batch, bins + 1)
    # x (points) or (*batch, points), y (*batch, points), and what else belongs to the curve, (*batch)
    curves: dict[str, tuple[Tensor, Tensor, dict[str, Tensor]]] = field(default_factory=dict)


class Reservoir:
    """A uniform sample without repetition of at most `size` rows of a stream, however long (Vitter 1985, R)."""

    def __init__(self, size: int, seed: int):
        self._size, self._seen, self._rows = size, 0, []
        self._generator = torch.Generator().manual_seed(seed)

    def add(self, batch: Tensor) -> None:
        """batch: (n, ...), the next n rows of the stream."""
        for row in batch:
            self._seen += 1
            if len(self._rows) < self._size:
                self._rows.append(row.clone())
            elif (slot := int(torch.randint(self._seen, (), generator=self._generator))) < self._size:
                self._rows[slot] = row.clone()

    def sample(self) -> Tensor:
        """(rows, ...)"""
        return torch.stack(self._rows)


@torch.no_grad()
def network_report(
    network: nn.Module,
    inputs: tuple,
    grads: dict[str, Tensor],
    batch_dims: int,
    generator: Generator = None,
    max_samples: int = 2_048,
) -> NetworkReport:
    """Everything that is worth plotting about a network, from one forward pass `network(*inputs)`; no side effects.

    grads: name, as in network.named_parameters() -> gradient; a parameter without one is not trained and left out, and
    a norm of nothing has no key. batch_dims: leading axes of the parameters (1: seeds; 2: seeds, twin critics). Per
    hidden layer (any submodule with `branches`): layer_metrics; weight_norm and gradient_norm of weights and biases,
    norms included; coefficient_gradient_norm of the activation's own parameters; for rationals numerator_norm = ||a||,
    denominator_norm = ||b|| and rational_health (of several branches: branch0_a_max, ...). Histogram preactivations
    (branches pooled). Curves: activation, f on [-10, 10] (activation0, ... of several branches or outputs, as crelu);
    kde00 .. kde15, density of the first neurons' outputs, with `dead`; of several branches also
    branch0_kde00, ... Layers whose output is feature maps are conv1, ..., the others fc1, ... Of the whole network:
    weight_norm, gradient_norm, coefficient_gradient_norm. A set that layers share counts in each, once in the whole.
    """
    device = next(network.parameters()).device
    generator = torch.Generator(device).manual_seed(0) if generator is None else generator
    with record_layers(network) as records:
        network(*inputs)
    report, layers = NetworkReport(), [(network.get_submodule(name), record) for name, record in records.items()]
    gradients = {id(p): grads[name] for name, p in network.named_parameters(remove_duplicate=False) if name in grads}
    coefficients = {id(p) for layer, _ in layers for branch in layer.branches for p in branch.activation.parameters()}

    def add_norms(prefix: str, parameters: Iterable[nn.Parameter]) -> None:
        parameters = {id(p): p for p in parameters}.values()
        weights = [p for p in parameters if id(p) not in coefficients]
        groups = {"weight_norm": weights, "gradient_norm": [gradients[id(p)] for p in weights if id(p) in gradients]}
        own = [gradients[id(p)] for p in parameters if id(p) in coefficients and id(p) in gradients]
        for name, group in {**groups, "coefficient_gradient_norm": own}.items():
            if group:
                report.scalars[prefix + name] = weight_norm(group, batch_dims)

    subset = functools.partial(_subset, batch_dims=batch_dims, generator=generator, max_samples=max_samples)
    numbers = {"conv": 0, "fc": 0}
    for layer, record in layers:
        kind = "conv" if record.output.ndim - batch_dims == 4 else "fc"
        numbers[kind] += 1
        prefix, curves = f"{kind}{numbers[kind]}/", []
        values = layer_metrics(record, batch_dims, generator, max_samples)
        report.scalars |= {prefix + name: value for name, value in values.items()}
        add_norms(prefix, layer.parameters())
        z = [subset(x) for x in record.pre_activations]
        report.histograms[prefix + "preactivations"] = histogram(torch.cat(z, dim=-1))
        grid = torch.linspace(-10, 10, 201, dtype=z[0].dtype, device=device)
        for i, branch in enumerate(layer.branches):
            f, x = branch.activation, record.pre_activations[i]
            points = grid.view((1,) * batch_dims + (-1,) + (1,) * (x.ndim - batch_dims - 1))
            curves += f(points).flatten(batch_dims + 1).expand(*x.shape[:batch_dims], -1, -1).unbind(-1)
            names = ("numerator", "denominator")
            if all(hasattr(f, name) for name in names):
                values = {f"{name}_norm": weight_norm([getattr(f, name)], batch_dims) for name in names}
                f_x, q_x = record.branch_outputs[i], f.numerator_and_denominator(x)[1]
                values |= rational_health(f.numerator, f.denominator, f.scale(), q_x, f_x, batch_dims)
                start = prefix if len(layer.branches) == 1 else f"{prefix}branch{i}_"
                report.scalars |= {start + name: value for name, value in values.items()}
        for i, curve in enumerate(curves):
            report.curves[prefix + "activation" + (str(i) if len(curves) > 1 else "")] = (grid, curve, {})
        outputs = {"": record.output}
        outputs |= {f"branch{i}_": x for i, x in enumerate(record.branch_outputs)} if len(layer.branches) > 1 else {}
        for part, output in outputs.items():
            output = subset(output)[..., :KDE_NEURONS]
            dead, (x, y) = dead_neurons_kde(output)[0], kde_curves(output, KDE_POINTS)
            for i in range(output.shape[-1]):
                report.curves[f"{prefix}{part}kde{i:02d}"] = (x[..., i, :], y[..., i, :], {"dead": dead[..., i]})
    add_norms("", network.parameters())
    return report
