"""The coefficients of the rational tanh of compiled updates on the CPU (runlog/seed_by_seed.py).

    python scripts/fit_tanh.py

tanh(x) = x P(x^2) / Q(x^2) for |x| <= 9, beyond which tanh is 1 in float32. Lawson's method levels
the relative error: least squares in float64, repeated with weights that grow where the error is
large (Lawson 1961).
"""

import numpy as np

BOUND = 9.0
NUM_POINTS = 4_000
NUM_ROUNDS = 200


def fit(p_degree: int, q_degree: int) -> tuple[float, np.ndarray, np.ndarray]:
    """(largest relative error, coefficients of P, of Q), lowest power first; Q(0) = 1."""
    # denser where tanh bends, as Chebyshev's points are
    x = BOUND * np.sin((np.arange(NUM_POINTS) + 0.5) / NUM_POINTS * np.pi / 2)
    target = np.tanh(x)
    u = np.square(x / BOUND)  # in [0, 1], so that powers stay comparable
    p_powers = u[:, None] ** np.arange(p_degree + 1)
    q_powers = u[:, None] ** np.arange(1, q_degree + 1)
    weights = np.ones(NUM_POINTS)
    q_values = np.ones(NUM_POINTS)
    best = (np.inf, None, None)
    for _ in range(NUM_ROUNDS):
        # x P / target = Q, divided by the Q of the round before: the relative error of P / Q
        rows = np.hstack([(x / target)[:, None] * p_powers, -q_powers]) / q_values[:, None]
        roots = np.sqrt(weights)
        solution, *_ = np.linalg.lstsq(rows * roots[:, None], roots / q_values, rcond=None)
        p = solution[: p_degree + 1]
        q = np.append(1.0, solution[p_degree + 1 :])
        q_values = 1 + q_powers @ q[1:]
        error = np.abs(x * (p_powers @ p) / q_values / target - 1)
        if error.max() < best[0]:
            best = (error.max(), p, q)
        weights = np.maximum(weights * error / (weights * error).sum(), 1e-12)
    error, p, q = best
    scale = 1 / BOUND**2
    return error, p * scale ** np.arange(p.size), q * scale ** np.arange(q.size)


if __name__ == "__main__":
    error, p, q = fit(4, 4)
    print("P:", ", ".join(f"{c:.9g}" for c in p))
    print("Q:", ", ".join(f"{c:.9g}" for c in q))
    print(f"largest relative error in exact arithmetic: {error:.2g}")
