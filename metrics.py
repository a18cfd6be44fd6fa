"""Representation and value metrics for studying activation functions in deep RL.

Pure functions on tensors: no side effects, nothing drawn from the global RNG, any number of leading
batch axes (seeds, critics), written `*batch`. Input is float32 or float64; results keep its dtype.
docs/metrics.md has the keys, units, sources and pitfalls; reports.py applies these functions to
whole networks. CR = arXiv 2507.14736, HR = arXiv 2406.09079, ReDo = arXiv 2302.12902, REDQ = arXiv
2101.05982.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]
Generator = torch.Generator | None
Limits = tuple[float, float] | None
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
KDE_CELLS = 16  # grid cells per bandwidth; the error bound in dead_neurons_kde needs 16
NTK_OUTPUTS = ("sum", "true_class", "loss")
NTK_COLUMNS = 2**14  # parameters whose gradients are converted to float64 at once
KDE_CHUNK = 2**17  # elements per working array: fits the L2 cache, bounds the memory


def _samples(x: Tensor, minimum: int = 1) -> Tensor:
    """x, detached. Raises ValueError unless it is a float tensor (*batch, samples >= minimum,
    neurons >= 1)."""
    is_shaped = x.ndim >= 2 and x.shape[-2] >= minimum and x.shape[-1] >= 1
    if not (x.is_floating_point() and is_shaped):
        needed = f"float (*batch, samples >= {minimum}, neurons >= 1)"
        raise ValueError(f"need {needed}, got {x.dtype} {tuple(x.shape)}")
    return x.detach()


# ---- numbers whose squares overflow or underflow -----------------------------------------------


def _largest(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """The largest |x| over `dim`, kept as axes of length 1; NaN where x has NaN. (A tenth of the
    time of vector_norm(x, inf), and no array of the size of x.)"""
    return torch.maximum(x.amax(dim, keepdim=True), -x.amin(dim, keepdim=True))


def _power_of_two(largest: Tensor) -> Tensor:
    """A power of two near the largest |x|; 1 where squares of x neither overflow nor underflow, and
    where x is 0 or not finite. Dividing by it is exact."""
    lowest_exponent = round(math.log2(torch.finfo(largest.dtype).tiny))
    # 2^50 for float32, 2^409 for float64: the sum of any number of such squares is finite
    limit = 2.0 ** (-0.4 * lowest_exponent)
    is_usual = (largest.clamp(1 / limit, limit) == largest) | (largest == 0)
    ones = torch.ones_like(largest)
    if is_usual.all():
        return ones
    exponent = torch.frexp(largest).exponent - 1
    exponent = exponent.clamp_min(lowest_exponent)  # denormals may be flushed to 0
    return torch.where(is_usual | ~largest.isfinite(), ones, torch.ldexp(ones, exponent))


def _divide(x: Tensor, scale: Tensor) -> Tensor:
    """x / scale, or x itself where every scale is 1, as for all ordinary numbers."""
    return x if (scale == 1).all() else x / scale


def _scaled(x: Tensor, dim: int | tuple[int, ...]) -> Pair:
    """(x / power, power), with a power of two for each index of the other axes, so that squares of
    the quotient can safely be summed over `dim` (kept as axes of length 1)."""
    scale = _power_of_two(_largest(x, dim))
    return _divide(x, scale), scale


def _scaled_row(x: Tensor, origin: torch.dtype) -> Pair:
    """_scaled over the last axis, for float64 numbers that come from numbers of dtype `origin`: if
    that is float32 their squares are safe without a check."""
    if origin != torch.float64:
        return x, torch.ones_like(x[..., :1])
    return _scaled(x, -1)


def _norm(x: Tensor, dim: int) -> Tensor:
    """L2 norm over one axis; it overflows or underflows only where the norm itself does."""
    scaled, scale = _scaled(x, dim)
    norm = x.norm(dim=dim)
    if scaled is x:
        return norm
    scale = scale.squeeze(dim)
    # A quotient has another memory layout, which may change the last bits of its sum: ordinary
    # norms are computed on x itself.
    return torch.where(scale == 1, norm, scaled.norm(dim=dim) * scale)


def _lerp(low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    """torch.lerp for values where high - low may overflow."""
    apart = low * (1 - weight) + high * weight
    return torch.where((high - low).isfinite(), torch.lerp(low, high, weight), apart)


# ---- neurons -----------------------------------------------------------------------------------


def channel_samples(h: Tensor, batch_dims: int = 0) -> Tensor:
    """Feature maps with positions as samples, as ReDo scores them: (*batch, n, C, H, W) -> (*batch,
    n * H * W, C). (*batch, samples, neurons) is returned unchanged; any other number of axes raises
    ValueError.
    >>> channel_samples(torch.zeros(8, 32, 5, 4)).shape
    torch.Size([160, 32])
    """
    num_axes = h.ndim - batch_dims
    if num_axes not in (2, 4):
        shape = tuple(h.shape)
        raise ValueError(f"expected 2 or 4 axes after {batch_dims} batch axes, got {shape}")
    return h if num_axes == 2 else h.movedim(-3, -1).flatten(batch_dims, -2)


def _jittered(z: Tensor, noise_variance: float, generator: Generator) -> Iterator[Pair]:
    """Yields (mean, jittered values minus mean), float64, (rows, samples); a row is one neuron of
    one batch entry."""
    # Batch entries share the noise: a seed gives the same result alone and in a batch. Subtracting
    # the mean first keeps the jitter of a neuron stuck at a large constant from being rounded away.
    num_samples, num_neurons = z.shape[-2:]
    if noise_variance < 0:
        raise ValueError(f"noise_variance must be >= 0, got {noise_variance}")
    if generator is None:
        generator = torch.Generator().manual_seed(0)  # the same draws for every device
    noise = torch.randn(num_neurons, num_samples, generator=generator, device=generator.device)
    noise = noise.to(z.device)
    rows = z.transpose(-1, -2).reshape(-1, num_samples)
    size = max(1, KDE_CHUNK // num_samples)
    for start in range(0, rows.shape[0], size):
        x = rows[start : start + size].double()
        scaled, scale = _scaled_row(x, z.dtype)
        mean = scaled.mean(-1, keepdim=True) * scale
        neuron = torch.arange(start, start + x.shape[0], device=z.device) % num_neurons
        yield mean, x - mean + math.sqrt(noise_variance) * noise[neuron].double()


def _peak_density(x: Tensor, origin: torch.dtype) -> Tensor:
    """Largest KDE value over a row's own samples: (rows, samples) float64 -> (rows,). See
    dead_neurons_kde."""
    x, unit = _scaled_row(x, origin)
    h = x.shape[-1] ** -0.2 * x.std(-1, keepdim=True)  # ddof 1, like scipy
    u = (x - x.amin(-1, keepdim=True)) / h  # in bandwidths, from 0
    usable = u.isfinite().all(-1)
    u = torch.where(usable.unsqueeze(-1), u, 0.0)
    smooth, cell, weights = _smoothed_grid(u)
    estimate = sum(weight * smooth[:, k:].gather(1, cell) for k, weight in enumerate(weights))
    candidate = u.gather(1, estimate.argmax(-1, keepdim=True))
    h = h.squeeze(-1)
    kernels = torch.exp((u - candidate).square_().div_(-2))
    density = kernels.mean(-1) / (h * math.sqrt(2 * math.pi))
    without_spread = torch.where(h == 0, math.inf, math.nan)
    return torch.where(usable, density / unit.squeeze(-1), without_spread)


def _smoothed_grid(u: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """The density of samples u (rows, samples), given in bandwidths from 0, times a constant, on a
    grid; and how to interpolate it at the samples: the first of the four nodes around each sample,
    and the weights of these nodes."""
    cell = (u * KDE_CELLS).floor()
    # float32 suffices to pick the candidate, whose density is computed in float64
    t = (u * KDE_CELLS - cell).float()
    a = t + 1
    b = t - 1
    c = t - 2
    # cubic Lagrange, nodes cell-1 .. cell+2
    weights = (t * b * c / -6, a * b * c / 2, a * t * c / -2, a * t * b / 6)
    cell = cell.long()
    # 8 bandwidths of padding prevent wrap-around
    length = 1 << (int(cell.max()) + 3 + 8 * KDE_CELLS).bit_length()
    grid = torch.zeros(u.shape[0], length, device=u.device)
    for k, weight in enumerate(weights):
        grid[:, k:].scatter_add_(1, cell, weight)
    frequency = 2 * math.pi * torch.fft.rfftfreq(length, 1 / KDE_CELLS, device=u.device)
    kernel = torch.exp(frequency.square() / -2)
    smooth = torch.fft.irfft(torch.fft.rfft(grid) * kernel, n=length)
    return smooth, cell, weights


def dead_neurons_kde(
    z: Tensor,
    omega: float = 20.0,
    noise_variance: float = 1e-5,
    generator: Generator = None,
) -> Pair:
    """Neurons whose activations have collapsed to a spike (HR Appendix B.1): dead iff max_j f(x_j)
    >= omega.

    x = z + N(0, noise_variance), h = n^(-1/5) std(x) (ddof 1),
    f(y) = 1/(n h) sum_i phi((y - x_i) / h), phi the standard normal density:
    `scipy.stats.gaussian_kde(x, bw_method=n**-0.2)` evaluated at its own samples. z:
    (*batch, samples >= 2, neurons), after the non-linearity. generator draws the jitter,
    (neurons, samples), shared by the batch entries; None: a new generator with seed 0, the same
    numbers for every device. Returns dead (bool) and the peak density (1 / unit of z),
    (*batch, neurons). NaN or inf: peak NaN, not dead; no spread at all (only with noise_variance
    0): peak inf, dead. omega is chosen for tanh, where 20 corresponds to std < about 0.02; for
    unbounded activations the result depends on scale. Wrong shapes: ValueError.

    Takes O(n + g log g) per neuron for a grid of g nodes, not O(n^2): a neuron spans at most
    g/16 <= sqrt(2n) n^(1/5) bandwidths, whatever its outliers, so a grid of step s = h/16 is small.
    Cubic weights spread each sample over 4 nodes, an FFT smooths them, and the same weights read
    the grid at the samples; the density is then summed exactly at the best sample, so it never
    exceeds the maximum. How far below it may be: cubic interpolation errs by 0.0235 s^4 |phi''''|,
    twice, with sum |w| <= 1.25. A stretch of one h with m samples has f >= m phi(1) / (n h) at
    each, so m <= n h f_max / phi(1); sup |phi''''| summed over the stretches bounds the error by
    1.7e-5 f_max; a wrong sample can win by twice that: peak >= (1 - 4e-5) max f(x_j).

    >>> used = torch.linspace(-1, 1, 64)
    >>> dead_neurons_kde(torch.stack([torch.ones(64), used], dim=-1))[0]  # the first: saturated
    tensor([ True, False])
    """
    z = _samples(z, 2)
    jittered = _jittered(z, noise_variance, generator)
    chunks = [_peak_density(x, z.dtype) for _, x in jittered]
    peaks = torch.cat(chunks).view_as(z[..., 0, :])
    return peaks >= omega, peaks.to(z.dtype)


def dead_neurons_std(z: Tensor, threshold: float = 0.02) -> Pair:
    """Neurons that hardly vary: dead iff std(z) < threshold (ddof 1). For a Gaussian neuron 0.02
    corresponds to omega = 20 in dead_neurons_kde, since its density peaks at 1 / (sqrt(2 pi) std),
    but std is sensitive to outliers. z: (*batch, samples >= 2, neurons). Returns dead (bool) and
    std (unit of z), (*batch, neurons). NaN: not dead. Wrong shape: ValueError.
    >>> dead_neurons_std(torch.tensor([[1.0, 0.0], [1.01, 1.0]]))[0]
    tensor([ True, False])
    """
    z, scale = _scaled(_samples(z, 2), -2)
    std = z.std(-2) * scale.squeeze(-2)
    return std < threshold, std


def kde_curves(
    z: Tensor,
    num_points: int = 256,
    noise_variance: float = 1e-5,
    limits: Limits = None,
    generator: Generator = None,
) -> Pair:
    """Curves of the density in dead_neurons_kde, for plots (HR Figs. 3, 6, 10, 11): (grid,
    density). z: (*batch, samples >= 2, neurons) -> (*batch, neurons, num_points) each. The grid
    spans `limits`, or each neuron's jittered samples extended by 3 bandwidths on both sides.
    O(samples * num_points) per neuron: select neurons first.
    >>> grid, density = kde_curves(torch.linspace(-1, 1, 100).unsqueeze(-1))
    >>> round(torch.trapezoid(density, grid).item(), 2)
    1.0
    """
    z = _samples(z, 2)
    curves = []
    unit = torch.linspace(0, 1, num_points, dtype=torch.float64, device=z.device)
    for means, chunk in _jittered(z, noise_variance, generator):
        for mean, x in zip(means, chunk):
            x, scale = _scaled_row(x, z.dtype)
            h = x.shape[0] ** -0.2 * x.std()
            if limits is None:
                low = x.min() - 3 * h
                high = x.max() + 3 * h
            else:
                low, high = ((limit - mean) / scale for limit in limits)
            points = low + (high - low) * unit
            kernels = torch.exp(((points.unsqueeze(-1) - x) / h).square() / -2)
            density = kernels.mean(-1) / (h * math.sqrt(2 * math.pi))
            curves.append(torch.stack([points * scale + mean, density / scale]))
    shape = (2, *z.shape[:-2], z.shape[-1], num_points)
    grid, density = torch.stack(curves, dim=1).reshape(shape).to(z.dtype)
    return grid, density


def dormant_neurons(h: Tensor, tau: float = 0.025, subtract_mean: bool = False) -> Pair:
    """ReDo dormancy: s_i = E|h_i| / (mean_k E|h_k| + 1e-9), dormant iff s_i <= tau (dopamine,
    weight_recyclers.py).

    h: (*batch, samples, neurons) after the activation (convolutions: channel_samples first).
    Returns dormant (bool) and the scores (no unit), (*batch, neurons). A saturated tanh has the
    highest possible plain score; subtract_mean=True subtracts each neuron's mean first (dopamine's
    `sub_mean_score`) and detects it. NaN: not dormant. Wrong shape: ValueError.
    >>> h = torch.tensor([[1.0, 0.5, 0.0], [1.0, -0.5, 0.0]])  # saturated, in use, zero
    >>> dormant_neurons(h)[0], dormant_neurons(h, subtract_mean=True)[0]
    (tensor([False, False,  True]), tensor([ True, False,  True]))
    """
    h, scale = _scaled(_samples(h), (-2, -1))
    if subtract_mean:
        h = h - h.mean(-2, keepdim=True)
    activity = h.abs().mean(-2)
    scores = activity / (activity.mean(-1, keepdim=True) + 1e-9 / scale.squeeze(-1))
    return scores <= tau, scores


def hidden_bias(h: Tensor, dead: Tensor, weight: Tensor) -> Pair:
    """The contributions of dead and of live neurons to the next layer, without its bias (HR Theorem
    4.1, Fig. 4).

    (h * dead) W^T and (h * ~dead) W^T. Dead neurons are constant, so their part is the constant
    mean(h_dead) W_dead^T, a hidden bias; it is 0 for ReLU neurons dead at 0. h: (*batch, samples,
    neurons); dead: (*batch, neurons) bool; weight: (*batch, outputs, neurons). Returns two (*batch,
    samples, outputs), unit of the outputs. Inconsistent shapes: ValueError.
    >>> dead, weight = torch.tensor([True, False]), torch.tensor([[0.5, 10.0]])
    >>> hidden_bias(torch.tensor([[1.0, 2.0]]), dead, weight)
    (tensor([[0.5000]]), tensor([[20.]]))
    """
    h = _samples(h)
    shape = (*h.shape[:-2], h.shape[-1])
    is_mask = dead.dtype == torch.bool and dead.shape == shape
    if not is_mask or weight.shape != (*shape[:-1], *weight.shape[-2:-1], shape[-1]):
        needed = f"dead bool {shape} and weight {(*shape[:-1], 'outputs', shape[-1])}"
        got = f"{dead.dtype} {tuple(dead.shape)} and {tuple(weight.shape)}"
        raise ValueError(f"need {needed}, got {got}")
    dead = dead.unsqueeze(-2)
    transposed = weight.detach().mT
    # masked_fill, not a product, keeps a NaN in one part out of the other
    from_dead = h.masked_fill(~dead, 0.0) @ transposed
    from_live = h.masked_fill(dead, 0.0) @ transposed
    return from_dead, from_live


# ---- ranks -------------------------------------------------------------------------------------


def _scaled_singular_values(features: Tensor) -> Pair:
    """singular_values divided by a power of two, so that their squares are safe, and that power
    (*batch, 1)."""
    x = _samples(features)
    largest = _largest(x, (-2, -1)).double()
    usable = largest.isfinite()
    x = x.double()
    if not usable.all():
        x = torch.where(usable, x, 0.0)
    scale = _power_of_two(largest)
    x = _divide(x, scale)
    gram = x.mT @ x if x.shape[-1] <= x.shape[-2] else x @ x.mT
    sigma = torch.linalg.eigvalsh(gram).clamp_min(0.0).sqrt().flip(-1)
    return torch.where(usable.squeeze(-1), sigma, math.nan), scale.squeeze(-1)


def singular_values(features: Tensor) -> Tensor:
    """Singular values, decreasing, float64: (*batch, samples, features) -> (*batch, min(samples,
    features)).

    Roots of the eigenvalues of the smaller Gram matrix, formed in float64: half the time of an SVD
    on CPU. In exchange, a value that is exactly 0 may come out as up to sqrt(eps) = 1.5e-8 of the
    largest (4e-6 of the sum for 256 of them), which changes srank only if a cumulative fraction
    lies that close to 1 - delta. Entries with NaN or inf give NaN.
    >>> singular_values(torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]))
    tensor([4., 3.], dtype=torch.float64)
    """
    sigma, scale = _scaled_singular_values(features)
    return sigma * scale


def effective_rank(features: Tensor, delta: float = 0.01) -> Tensor:
    """srank, the smallest k with sum_{i<=k} sigma_i >= (1 - delta) sum_i sigma_i (HR B.2; arXiv
    2010.14498).

    Computed on singular values, not their squares. features: (*batch, samples, features), with
    samples >= features, otherwise their number caps the rank. Returns (*batch), whole numbers in
    features' dtype: 1 for all-zero features (the paper's formula), NaN for non-finite. delta
    outside (0, 1) raises ValueError; below 1e-4 it approaches the accuracy of singular_values.
    >>> effective_rank(torch.diag(torch.tensor([100.0, 1.0, 0.5])))
    tensor(2.)
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie in (0, 1), got {delta}")
    cumulative = _scaled_singular_values(features)[0].cumsum(-1)
    rank = (cumulative < (1 - delta) * cumulative[..., -1:]).sum(-1) + 1.0
    return torch.where(cumulative[..., -1].isnan(), math.nan, rank).to(features.dtype)


def stable_rank(features: Tensor) -> Tensor:
    """||Phi||_F^2 / ||Phi||_2^2, the textbook stable rank: (*batch, samples, features) -> (*batch);
    0 if all zero.
    >>> stable_rank(torch.diag(torch.tensor([2.0, 1.0, 1.0])))
    tensor(1.5000)
    """
    squares = _scaled_singular_values(features)[0].square()
    return (squares.sum(-1) / squares[..., 0].clamp_min(1e-300)).to(features.dtype)


def entropy_rank(features: Tensor) -> Tensor:
    """exp(-sum p log p), p = sigma / sum sigma (Roy 2007): (*batch, samples, features) -> (*batch);
    0 if all zero.
    >>> entropy_rank(torch.eye(4))
    tensor(4.)
    """
    sigma = _scaled_singular_values(features)[0]
    p = sigma / sigma.sum(-1, keepdim=True).clamp_min(1e-300)
    rank = torch.exp(-torch.xlogy(p, p).sum(-1))
    return torch.where(sigma[..., 0] == 0, 0.0, rank).to(features.dtype)


def ntk_gram(
    network: nn.Module,
    inputs: tuple,
    batch_dims: int = 0,
    sample_dim: int | None = None,
    *,
    output: str | Callable[[Tensor], Tensor] = "sum",
    targets: Tensor | None = None,
    coefficients: bool = True,
) -> Tensor:
    """Empirical neural tangent kernel K_ij = sum_theta dy_i/dtheta dy_j/dtheta of a scalar output y
    (arXiv 1806.07572).

    network(*inputs) is (*batch, n) or (*batch, n, outputs); each input has its n samples along axis
    sample_dim (None: batch_dims), and parameters have batch_dims leading axes. output defines y:
    "sum" of the outputs, "true_class" (the logit of targets (*batch, n), int64), "loss"
    (cross-entropy of targets: K is then the gradients' second moment), or any function of the
    outputs. theta: the trainable parameters, including those of activations only if coefficients
    is set. Returns (*batch, n, n), float64. Samples must not interact (no batch norm). Needs n
    times the memory of the parameters at once. Raises ValueError for an unknown output, missing
    targets, or no parameters.
    >>> ntk_gram(nn.Linear(2, 1, bias=False), (torch.tensor([[1.0, 2.0], [3.0, 4.0]]),))
    tensor([[ 5., 11.],
            [11., 25.]], dtype=torch.float64)
    """
    gram, scale = _scaled_ntk_gram(
        network,
        inputs,
        batch_dims,
        sample_dim,
        output=output,
        targets=targets,
        coefficients=coefficients,
    )
    return gram * scale * scale


def _scaled_ntk_gram(
    network, inputs, batch_dims, sample_dim, *, output, targets, coefficients
) -> Pair:
    """ntk_gram divided by the square of a power of two, and that power (*batch, 1, 1)."""
    if isinstance(output, str) and (
        output not in NTK_OUTPUTS or (output != "sum" and targets is None)
    ):
        rule = f"must be one of {', '.join(NTK_OUTPUTS)}; all but sum need targets"
        raise ValueError(f"output {output!r}: {rule}")
    dim = batch_dims if sample_dim is None else sample_dim
    left_out = set() if coefficients else _ids_of_coefficients(network)
    theta = {
        name: parameter.detach()
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and id(parameter) not in left_out
    }
    if not theta:
        raise ValueError(f"{type(network).__name__} has no such parameters")
    gradients = _sample_gradients(network, theta, inputs, dim, output, targets)
    rows = []  # (*batch, n, entries) of each parameter
    for gradient in gradients.values():  # (n, *batch, ...)
        has_entries = gradient.ndim > 1 + batch_dims
        flat = gradient.flatten(1 + batch_dims) if has_entries else gradient.unsqueeze(-1)
        rows.append(flat.movedim(0, -2))
    largest = torch.stack([_largest(x, (-2, -1)) for x in rows]).amax(0).double()
    scale = _power_of_two(largest)
    gram = 0.0
    for x in rows:
        for part in x.split(NTK_COLUMNS, -1):  # converts one part at a time to float64
            part = _divide(part.double(), scale)
            gram = gram + part @ part.mT
    return gram, scale


def _sample_gradients(network, theta, inputs, dim, output, targets) -> dict[str, Tensor]:
    """Gradients of y with respect to the parameters theta, sample by sample: name -> (n, *batch,
    ...)."""

    def scalar(theta, target, *sample):
        # The batch entries are independent: their sum has the gradients of each.
        sample = tuple(x.unsqueeze(dim) for x in sample)
        y = torch.func.functional_call(network, theta, sample)
        if callable(output):
            y = output(y)
        elif output == "true_class":
            y = y.gather(-1, target[..., None, None])
        elif output == "loss":
            y = -y.log_softmax(-1).gather(-1, target[..., None, None])
        return y.sum()

    in_dims = (None, None if targets is None else -1, *[dim] * len(inputs))
    return torch.func.vmap(torch.func.grad(scalar), in_dims)(theta, targets, *inputs)


def _ids_of_coefficients(network: nn.Module) -> set[int]:
    """The ids of activations' parameters: those of `branch.activation` in every submodule with
    `branches`."""
    found = set()
    for module in network.modules():
        for branch in getattr(module, "branches", ()):
            found |= {id(parameter) for parameter in branch.activation.parameters()}
    return found


def ntk_rank(
    network: nn.Module,
    inputs: tuple,
    batch_dims: int = 0,
    sample_dim: int | None = None,
    *,
    output: str | Callable[[Tensor], Tensor] = "sum",
    targets: Tensor | None = None,
    coefficients: bool = True,
) -> dict[str, Tensor]:
    """Ranks of the empirical NTK, with the arguments of ntk_gram. Values are (*batch), float64,
    computed from its eigenvalues l:

    srank, the smallest k for which the k largest l make up >= 99 % of the sum;
    entropy_rank = exp(-sum p log p), p = l / sum l (as C-CHAIN reports them, Tang et al. 2025);
    trace = sum l;
    condition = max l / min l (inf if K is singular in float64, for example with more samples than
    parameters). Non-finite gradients: NaN; all zero: the ranks are 0. srank and entropy_rank do not
    depend on the scale of y.
    >>> ntk_rank(nn.Linear(2, 1, bias=False), (torch.eye(2),))["entropy_rank"]
    tensor(2., dtype=torch.float64)
    """
    gram, scale = _scaled_ntk_gram(
        network,
        inputs,
        batch_dims,
        sample_dim,
        output=output,
        targets=targets,
        coefficients=coefficients,
    )
    usable = gram.isfinite().flatten(-2).all(-1)
    gram = torch.where(usable[..., None, None], gram, 0.0)
    values = torch.linalg.eigvalsh((gram + gram.mT) / 2).flip(-1)
    # as in numpy's matrix_rank
    noise = values[..., :1] * values.shape[-1] * torch.finfo(values.dtype).eps
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


# ---- norms and gradients -----------------------------------------------------------------------


def feature_norm(features: Tensor) -> Tensor:
    """Mean L2 norm of the samples' features, mean_i ||phi(x_i)||_2: (*batch, samples, features) ->
    (*batch).
    >>> feature_norm(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    tensor(3.)
    """
    x, scale = _scaled(_samples(features), (-2, -1))
    return x.norm(dim=-1).mean(-1) * scale[..., 0, 0]


def weight_norm(tensors: Iterable[Tensor], batch_dims: int = 0) -> Tensor:
    """Global L2 norm sqrt(sum_k ||w_k||^2) of tensors (*batch, ...) sharing `batch_dims` leading
    axes: (*batch). Raises ValueError for an empty list or too few axes.
    >>> weight_norm([torch.tensor([[3.0], [6.0]]), torch.tensor([4.0, 8.0])], batch_dims=1)
    tensor([ 5., 10.])
    """
    tensors = [x.detach() for x in tensors]
    if min((x.ndim for x in tensors), default=-1) < batch_dims:
        needed = f"each with {batch_dims} leading batch axes"
        raise ValueError(f"expected at least one tensor, {needed}")
    norms = [_norm(x.reshape(*x.shape[:batch_dims], -1), -1) for x in tensors]
    return _norm(torch.stack(norms), 0)


def mean_gradients(
    loss: Callable[[dict[str, Tensor]], Tensor],
    batch: dict[str, Tensor],
    parameters: list[Tensor],
    size: int,
    dim: int = 0,
) -> list[Tensor]:
    """Gradients of a loss that is a mean over samples, accumulated over pieces of at most `size`
    samples to bound the memory. loss: dict like `batch` -> scalar; samples are axis `dim` of every
    tensor in batch.
    >>> w = nn.Parameter(torch.tensor(2.0))
    >>> batch = {"x": torch.arange(3.0)}
    >>> mean_gradients(lambda part: (w * part["x"]).square().mean(), batch, [w], size=2)
    [tensor(6.6667)]
    """
    num_samples = next(iter(batch.values())).shape[dim]
    totals = [torch.zeros_like(p) for p in parameters]
    for start in range(0, num_samples, size):
        length = min(size, num_samples - start)
        part = {name: x.narrow(dim, start, length) for name, x in batch.items()}
        grads = torch.autograd.grad(loss(part) * (length / num_samples), parameters)
        totals = [total + grad for total, grad in zip(totals, grads)]
    return totals


def named_gradients(
    network: nn.Module, loss: Callable[..., Tensor], batch: Sequence[Tensor], size: int
) -> dict[str, Tensor]:
    """mean_gradients of loss(*batch) for the trained parameters of a network, by name."""
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    columns = dict(enumerate(batch))
    grads = mean_gradients(lambda part: loss(*part.values()), columns, [*trained.values()], size)
    return dict(zip(trained, grads))


def gradient_norm(tensors: Iterable[Tensor], batch_dims: int = 0) -> Tensor:
    """Global L2 norm of the `.grad` of parameters (*batch, ...): (*batch). Call it before clipping.
    Parameters without a gradient are left out; ValueError if none has one (gradient tensors: use
    weight_norm).
    >>> (w := nn.Parameter(torch.ones(4))).sum().backward()
    >>> gradient_norm([w])
    tensor(2.)
    """
    gradients = [x.grad for x in tensors if x.grad is not None]
    if not gradients:
        raise ValueError(
            "no tensor has a .grad: call after backward(), or give gradient tensors to weight_norm"
        )
    return weight_norm(gradients, batch_dims)


# ---- returns and overestimation ----------------------------------------------------------------


def first_episodes(
    values: Tensor, dones: Tensor, number: int, reduce: Callable = torch.sum
) -> tuple[Tensor, list[int]]:
    """Applies `reduce` (torch.sum: returns) to `values` over each of the first `number` episodes:
    values, dones (batch, time), with at least `number` episode ends in every row -> ((batch,
    number), [steps up to the last of these ends]).
    >>> first_episodes(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[0, 1, 1, 0]]), number=2)
    (tensor([[3., 3.]]), [3])
    """
    rows = []
    lengths = []
    for row, done in zip(values, dones):
        stops = (done.nonzero().squeeze(-1)[:number] + 1).tolist()
        starts = [0, *stops]
        episodes = [reduce(row[start:stop], -1) for start, stop in zip(starts, stops)]
        rows.append(torch.stack(episodes))
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
    """Discounted (soft) Monte-Carlo returns of concatenated episodes, and the weight of what a cut
    leaves out.

    G_t = r_t + gamma (1 - termination_t) (G_{t+1} - alpha log pi(a_{t+1} | s_{t+1})): the entropy
    of later actions counts, that of a_t does not, as in SAC's Q and REDQ's bias_utils.py. At a cut
    (a truncation, or the last step, unless it is a termination) the last bracket is
    bootstrap_values_t, the soft value of the true next state, or 0 without them. All tensors
    (*batch, time), alpha a number or (*batch). Returns (returns, tail_weight), (*batch, time);
    tail_weight = gamma^(steps to the cut), 0 if nothing is missing. Unequal shapes, log_probs
    without alpha: ValueError.
    >>> discounted_returns(torch.ones(3), torch.tensor([0, 1, 0]), torch.zeros(3), gamma=0.5)
    (tensor([1.5000, 1.0000, 1.0000]), tensor([0.0000, 0.0000, 0.5000]))
    """
    for x in (terminations, truncations, log_probs, bootstrap_values):
        if x is not None and x.shape != rewards.shape:
            needed = f"(*batch, time) like rewards {tuple(rewards.shape)}"
            raise ValueError(f"all must be {needed}, got {tuple(x.shape)}")
    if (log_probs is None) != (alpha is None):
        raise ValueError("log_probs and alpha belong together: give both or neither")
    r = rewards.detach().double()
    terminated = terminations.bool()
    cut = truncations.bool().clone()
    cut[..., -1:] = True
    if bootstrap_values is None:
        tail = torch.zeros_like(r)
        missing = 1.0
    else:
        tail = bootstrap_values.detach().double()
        missing = 0.0
    entropy = torch.zeros_like(r)
    if log_probs is not None:
        alpha = torch.as_tensor(alpha, dtype=r.dtype, device=r.device).detach().unsqueeze(-1)
        entropy = -alpha * log_probs.detach()

    returns = torch.empty_like(r)
    tail_weight = torch.empty_like(r)
    g = r.new_zeros(r.shape[:-1])
    w = g
    for t in range(r.shape[-1] - 1, -1, -1):
        g = torch.where(cut[..., t], tail[..., t], g)
        w = torch.where(cut[..., t], missing, w)
        g = r[..., t] + gamma * torch.where(terminated[..., t], 0.0, g)
        w = gamma * torch.where(terminated[..., t], 0.0, w)
        returns[..., t] = g
        tail_weight[..., t] = w
        g = g + entropy[..., t]  # the step before sees G_t - alpha log pi(a_t | s_t)
    return returns.to(rewards.dtype), tail_weight.to(rewards.dtype)


def _mean_of_kept(x: Tensor, kept: Tensor, num_kept: Tensor) -> Tensor:
    """(*batch, time) -> (*batch), the mean over the kept states."""
    x, scale = _scaled(torch.where(kept, x, 0.0), -1)
    return x.sum(-1) / num_kept * scale.squeeze(-1)


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
    """Overestimation Q(s_t, a_t) - G_t on fresh episodes of the stochastic policy (REDQ,
    bias_utils.py).

    q: (*batch, time), the estimate under study for the actions taken; the other arguments are those
    of discounted_returns. A state is kept if its tail_weight <= tail_tolerance: at gamma 0.99 the
    last 298 steps before a cut are dropped, so 702 of 1,000 are kept, and none of 200
    (0.99^200 = 0.13). In that case pass bootstrap_values, with which all are kept. fallback_values
    are the same, but used only in batch entries where no state would be kept. Returns a dict:
    errors, returns, kept, (*batch, time); over kept states (NaN if none), (*batch): mean and std
    (ddof 0) of errors, normalised = mean of error / max(|G|, floor) state by state as in REDQ,
    num_kept; bootstrapped, (*batch) bool (False: states before a cut are dropped).
    >>> end = torch.tensor([False, True])
    >>> q = torch.tensor([2.5, 2.0])
    >>> q_overestimation(q, torch.ones(2), end, torch.zeros(2), gamma=0.5)["mean"]
    tensor(1.)
    """
    if q.shape != rewards.shape:
        shape = tuple(rewards.shape)
        raise ValueError(f"q must have the shape of rewards {shape}, got {tuple(q.shape)}")
    arguments = (rewards, terminations, truncations, gamma)
    soft = {"log_probs": log_probs, "alpha": alpha}
    returns, tail_weight = discounted_returns(*arguments, **soft, bootstrap_values=bootstrap_values)
    is_given = bootstrap_values is not None
    bootstrapped = torch.full_like(rewards[..., 0], is_given, dtype=torch.bool)
    if fallback_values is not None:
        has_none = (tail_weight > tail_tolerance).all(-1)
        bootstrapped |= has_none
        other, other_weight = discounted_returns(
            *arguments, **soft, bootstrap_values=fallback_values
        )
        chosen = has_none.unsqueeze(-1)
        returns = torch.where(chosen, other, returns)
        tail_weight = torch.where(chosen, other_weight, tail_weight)
    kept = tail_weight <= tail_tolerance
    num_kept = kept.sum(-1)
    errors = q.detach() - returns
    mean = _mean_of_kept(errors, kept, num_kept)
    normalised = _mean_of_kept(errors / returns.abs().clamp_min(floor), kept, num_kept)
    deviations, scale = _scaled(torch.where(kept, errors - mean.unsqueeze(-1), 0.0), -1)
    std = (deviations.square().sum(-1) / num_kept).sqrt() * scale.squeeze(-1)
    return {
        "errors": errors,
        "returns": returns,
        "kept": kept,
        "mean": mean,
        "std": std,
        "normalised": normalised,
        "num_kept": num_kept,
        "bootstrapped": bootstrapped,
    }


def overestimation_of_first(
    lengths: Sequence[int],
    *,
    q: Tensor,
    rewards: Tensor,
    terminations: Tensor,
    truncations: Tensor,
    gamma: float,
    fallback_values: Tensor,
    log_probs: Tensor | None = None,
    alpha: Tensor | None = None,
) -> list[dict[str, float]]:
    """q_overestimation of batch entries of different length: tensors (batch, time), of which entry
    i has lengths[i] steps; log_probs and alpha (batch, 1) for soft returns. Returns
    overestimation/mean, std and normalised for each entry."""
    found = []
    for i, length in enumerate(lengths):
        soft = {}
        if log_probs is not None:
            soft = {"log_probs": log_probs[i, :length], "alpha": alpha[i]}
        bias = q_overestimation(
            q[i, :length],
            rewards[i, :length],
            terminations[i, :length],
            truncations[i, :length],
            gamma,
            fallback_values=fallback_values[i, :length],
            **soft,
        )
        names = ("mean", "std", "normalised")
        found.append({f"overestimation/{name}": bias[name].item() for name in names})
    return found


def sequence_scores(history: Sequence[Sequence[float]], task_steps: int) -> dict[str, float]:
    """Plasticity and forgetting over tasks learnt one after the other, at the newest evaluation.

    history: a row (step, score of task 1, ..., score of task n) for each evaluation so far, where a
    higher score is better. Task k is trained in the steps ((k - 1) T, k T], T = task_steps, and
    also evaluated at its end k T. Returns

    - sequence/average, the current mean score over all n tasks;
    - if task k ends at this step: sequence/task<k>/end_score, its current score;
      sequence/task<k>/mean_score, the mean over the evaluations in its steps (the area under its
      learning curve over T, as in Continual World, 2105.10919; for a single task the mean over the
      run); and sequence/plasticity, the mean of the mean scores of the tasks that have ended;
    - for each task that ended earlier: sequence/task<k>/forgetting = end score - current score;
      sequence/forgetting, their mean, is the negative of the backward transfer of Lopez-Paz and
      Ranzato 2017 (1706.08840): below 0 if old tasks have improved.

    >>> history = [(10, 0.2, 0.0), (20, 0.6, 0.1), (30, 0.5, 0.3)]
    >>> sequence_scores(history, task_steps=20)["sequence/forgetting"]
    0.09999999999999998
    """
    rows = torch.tensor(history, dtype=torch.float64)
    steps = rows[:, 0]
    scores = rows[:, 1:]
    step = steps[-1].item()
    now = scores[-1].tolist()
    values = {"sequence/average": sum(now) / len(now)}
    forgetting = []
    plasticity = []
    for k, score in enumerate(now):
        end = (k + 1) * task_steps
        phase = scores[(steps > k * task_steps) & (steps <= end), k]
        if step >= end:
            plasticity.append(phase.mean().item())
        if step > end:
            forgetting.append(phase[-1].item() - score)
            values[f"sequence/task{k + 1}/forgetting"] = forgetting[-1]
        if step == end:
            values[f"sequence/task{k + 1}/end_score"] = score
            values[f"sequence/task{k + 1}/mean_score"] = plasticity[-1]
            values["sequence/plasticity"] = sum(plasticity) / len(plasticity)
    if forgetting:
        values["sequence/forgetting"] = sum(forgetting) / len(forgetting)
    return values


# ---- distributions and rationals ---------------------------------------------------------------


def preactivation_quantiles(z: Tensor, q: tuple[float, ...] = QUANTILES) -> Tensor:
    """Quantiles over samples and neurons, interpolated linearly: (*batch, samples, neurons) ->
    (*batch, len(q)). Uses sorting, which avoids torch.quantile's limit of 2^24 elements. NaN gives
    NaN; q outside [0, 1] raises ValueError.
    >>> preactivation_quantiles(torch.arange(5.0).unsqueeze(-1), (0.5, 0.625))
    tensor([2.0000, 2.5000])
    """
    if not all(0 <= x <= 1 for x in q):
        raise ValueError(f"quantiles must lie in [0, 1], got {q}")
    ordered = _samples(z).flatten(-2).sort(-1).values
    position = torch.tensor(q, dtype=torch.float64, device=z.device) * (ordered.shape[-1] - 1)
    below = ordered[..., position.floor().long()].double()
    above = ordered[..., position.ceil().long()].double()
    quantiles = _lerp(below, above, position.frac())
    return torch.where(ordered[..., -1:].isnan(), math.nan, quantiles).to(z.dtype)


def histogram(z: Tensor, bins: int = 64, limits: Limits = None) -> Pair:
    """Histogram over samples and neurons, like numpy's: (*batch, samples, neurons) -> counts
    (*batch, bins), edges. Edges (*batch, bins + 1) span `limits`, or the finite values. NaN and
    values outside are not counted.
    >>> histogram(torch.tensor([[0.0, 1.0], [1.0, 4.0]]), bins=2)
    (tensor([3, 1]), tensor([0., 2., 4.]))
    """
    x = _samples(z).flatten(-2)
    low, high = _ends(x, bins)
    if limits is not None:
        low, high = (torch.full_like(low, limit) for limit in limits)
    unit = torch.linspace(0, 1, bins + 1, dtype=x.dtype, device=x.device)
    edges = _lerp(low, high, unit)
    index = torch.searchsorted(edges[..., 1:-1].contiguous(), x, right=True)
    counts = torch.zeros(*x.shape[:-1], bins, dtype=torch.int64, device=x.device)
    is_inside = (x >= low) & (x <= high)
    return counts.scatter_add_(-1, index, is_inside.long()), edges


def _ends(x: Tensor, bins: int) -> Pair:
    """Smallest and largest finite value of each row (*batch, n) -> (*batch, 1) each; for a single
    value they are moved apart as far as `bins` edges need."""
    low = torch.where(x.isfinite(), x, math.inf).amin(-1, keepdim=True)
    high = torch.where(x.isfinite(), x, -math.inf).amax(-1, keepdim=True)
    info = torch.finfo(x.dtype)
    spacing = low.abs() * info.eps * bins  # with less, the bins around one value would coincide
    half = torch.where(spacing > 1, spacing, 0.5)
    is_constant = low == high
    lower = torch.where(is_constant, (low - half).clamp_min(info.min), low)
    upper = torch.where(is_constant, (high + half).clamp_max(info.max), high)
    return lower, upper


def rational_health(
    numerator: Tensor,
    denominator: Tensor,
    c: Tensor | None,
    *,
    q_x: Tensor,
    f_x: Tensor,
    batch_dims: int = 0,
) -> dict[str, Tensor]:
    """Failure signatures of a rational f = P/Q: largest |a_i|, |b_j| and |f(x)|, smallest Q(x) and
    c (None: no key).

    numerator, denominator (*batch, coefficients); c, q_x = Q(x) and f_x = f(x) (*batch, ...).
    Values are (*batch).
    >>> a, b = torch.tensor([1.0, -3.0]), torch.tensor([0.5])
    >>> rational_health(a, b, None, q_x=torch.ones(4), f_x=torch.zeros(4))
    {'a_max': tensor(3.), 'b_max': tensor(0.5000), 'f_max': tensor(0.), 'q_min': tensor(1.)}
    """

    def flat(x: Tensor) -> Tensor:
        return x.detach().reshape(*x.shape[:batch_dims], -1)

    values = {
        "a_max": flat(numerator).abs().amax(-1),
        "b_max": flat(denominator).abs().amax(-1),
        "f_max": flat(f_x).abs().amax(-1),
        "q_min": flat(q_x).amin(-1),
    }
    if c is not None:
        values["c_min"] = flat(c).amin(-1)
    return values


class Reservoir:
    """A uniform sample without replacement of at most `size` rows of a stream of any length (Vitter
    1985, algorithm R)."""

    def __init__(self, size: int, seed: int):
        self._size = size
        self._seen = 0
        self._rows = []
        self._generator = torch.Generator().manual_seed(seed)

    def add(self, batch: Tensor) -> None:
        """batch: (n, ...), the next n rows of the stream."""
        for row in batch:
            self._seen += 1
            if len(self._rows) < self._size:
                self._rows.append(row.clone())
                continue
            slot = int(torch.randint(self._seen, (), generator=self._generator))
            if slot < self._size:
                self._rows[slot] = row.clone()

    def sample(self) -> Tensor:
        """(rows, ...)"""
        return torch.stack(self._rows)
