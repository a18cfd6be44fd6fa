"""How much the place of RAdam's epsilon matters: optax's rule against torch's (docs/pqn_atari.md).

    python scripts/radam_epsilon.py

With bias-corrected moments m_t and v_t (Kingma & Ba 2015) and the rectification r_t (Liu et al.
2020) optax moves a weight by lr r_t m_t / (sqrt(v_t) + eps). torch adds eps before v_t is
corrected, lr r_t m_t / (sqrt(v_t) + eps / c_t) with c_t = sqrt(1 - beta2^t), so its epsilon counts
more at first.

Two copies of each weight receive the same normal gradients, one under each rule. The table shows
how far apart they end, relative to how far optax's has moved (root mean squares over weights,
float64), and how well the formula above agrees with torch.optim.RAdam. optax itself is not needed:
its rule is that of optax.scale_by_radam, written out.
"""

import argparse
import math

import torch

BETA1 = 0.9
BETA2 = 0.999
EPSILON = 1e-8
LEARNING_RATE = 2.5e-4  # PQN's; the ratios do not depend on it


def trajectory(gradients: torch.Tensor, rule: str) -> torch.Tensor:
    """The final values of weights that start at 0. gradients: (updates, weights) float64;
    rule: "optax" or "torch"."""
    weights = torch.zeros_like(gradients[0])
    first_moment = torch.zeros_like(weights)
    second_moment = torch.zeros_like(weights)
    rho_inf = 2 / (1 - BETA2) - 1
    for t, gradient in enumerate(gradients, start=1):
        first_moment = BETA1 * first_moment + (1 - BETA1) * gradient
        second_moment = BETA2 * second_moment + (1 - BETA2) * gradient.square()
        correction2 = 1 - BETA2**t
        step = first_moment / (1 - BETA1**t)
        rho = rho_inf - 2 * t * BETA2**t / correction2
        if rho > 5:  # before that both rules leave the second moment out
            r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
            epsilon = EPSILON if rule == "optax" else EPSILON / math.sqrt(correction2)
            step = r * step / ((second_moment / correction2).sqrt() + epsilon)
        weights = weights - LEARNING_RATE * step
    return weights


def torch_trajectory(gradients: torch.Tensor) -> torch.Tensor:
    """`trajectory` by torch.optim.RAdam."""
    weights = torch.nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = torch.optim.RAdam([weights], lr=LEARNING_RATE, betas=(BETA1, BETA2), eps=EPSILON)
    for gradient in gradients:
        weights.grad = gradient.clone()
        optimizer.step()
    return weights.detach()


def rms(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--updates", type=int, default=64)
    parser.add_argument("--weights", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(options.seed)
    unit = torch.randn(options.updates, options.weights, generator=generator, dtype=torch.float64)
    ratio = 1 / math.sqrt(1 - BETA2**options.updates)
    print(
        f"after {options.updates} updates torch's epsilon counts {ratio:.2f} times as much as "
        "optax's"
    )
    print("| gradients | distance / movement | torch's formula from torch.optim.RAdam |")
    print("|---|---|---|")
    for scale in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7):
        gradients = scale * unit
        optax = trajectory(gradients, "optax")
        ours = trajectory(gradients, "torch")
        reference = torch_trajectory(gradients)
        distance = rms(ours - optax) / rms(optax)
        error = rms(ours - reference) / rms(reference)
        print(f"| {scale:.0e} | {distance:.1e} | {error:.0e} |")


if __name__ == "__main__":
    main()
