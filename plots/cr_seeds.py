"""CR with reinforcement learning, seed by seed: for runs whose values explode, which a mean
over seeds hides."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from plots import claims, cr
from plots.claims import FRACTION, RATIO, Quantity
from plots.panels import Panel, keys_of
from plots.reading import Places
from plots.recording import file_name
from plots.seeds import write_seeds
from plots.study import read_study
from plots.variants import SAC

SUCCESS = Panel("success", "rate (any step)", "eval/success")
BIAS = Panel("Q - G", "return", "overestimation/mean", scale="symlog")
MEAN_Q = Panel("mean Q", "on the batch", "losses/q_mean", scale="symlog")
TEMPERATURE = Panel("temperature", "alpha", "losses/alpha", scale="log")
INPUT = Panel("input", "99 % of x, critics", rf"{cr.LAYERS}preact_q99", "max", scale="log")
OUTPUT = replace(cr.LARGEST, title="output")
GRADIENT = replace(cr.COEFFICIENTS, title="coefficient gradient", unit="L2 norm, critics")
NUMERATOR = replace(cr.NUMERATOR, title="numerator", unit="L2 norm of a, critics")
DENOMINATOR = replace(cr.DENOMINATOR, title="denominator", unit="L2 norm of b, critics")
# Each layer has one c, so its smallest c is that one.
FIRST_C = Panel("c, first layer", "mean of critics", rf"{cr.CRITICS}/fc1/c_min", scale="log")
SECOND_C = Panel("c, second layer", "mean of critics", rf"{cr.CRITICS}/fc2/c_min", scale="log")
VALUES = (cr.RETURNS, SUCCESS, BIAS, MEAN_Q, TEMPERATURE)
INSIDE = (INPUT, OUTPUT, GRADIENT, NUMERATOR, DENOMINATOR)
CONSTRAINT = (cr.RETURNS, BIAS, OUTPUT, GRADIENT, SECOND_C, INPUT)

# Rewards are at most 10 in Meta-World and 1 in DMC, gamma is 0.99: no policy is worth more.
LARGEST_VALUE = 1_000.0
IMPOSSIBLE_Q = replace(MEAN_Q, title="|mean Q| > 1,000")

QUANTITIES = (
    Quantity(cr.RETURNS, test="permutation", worst=-np.inf),
    Quantity(SUCCESS, test="permutation", worst=-np.inf),
    Quantity(BIAS, worst=np.inf),
    Quantity(IMPOSSIBLE_Q, FRACTION, threshold=LARGEST_VALUE),
    Quantity(TEMPERATURE, RATIO, worst=np.inf),
    Quantity(INPUT, RATIO, worst=np.inf),
    Quantity(OUTPUT, RATIO, worst=np.inf),
    Quantity(GRADIENT, RATIO, worst=np.inf),
    Quantity(NUMERATOR, RATIO),
    Quantity(DENOMINATOR, RATIO),
)
OF_C = (Quantity(FIRST_C, RATIO), Quantity(SECOND_C, RATIO))


def cr_seeds(
    runs: Places, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()
) -> list[Path]:
    """CR, seed by seed, for values that explode: curves of every seed, last values, and every
    variant against every other, paired by seed."""
    study = read_study(runs, SAC, keys_of(*VALUES, *INSIDE), where).chosen(variants)
    out = Path(out)
    taken = set()
    paths = []
    for env in study.environments:
        part = study.of_environment(env)
        name = file_name(f"cr_seeds-{env.rpartition('/')[2]}", taken)
        title = f"CR, {env}: SAC"
        paths += write_seeds(part, VALUES, out, f"{name}-values", title)
        paths += write_seeds(part, INSIDE, out, f"{name}-inside", f"{title}, inside the critics")
        paths += claims.write_claims(part, QUANTITIES, out, f"{name}-claims", title)
        paths += claims.write_summary(part, QUANTITIES, out, f"{name}-summary")
        paths.append(claims.write_last(part, QUANTITIES, out, f"{name}-last"))
    return paths


def cr_constraint(
    runs: Places, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()
) -> list[Path]:
    """CR's open question, a constraint that changes: every seed's return, overestimation, outputs,
    gradients, inputs and c; every variant against the first, paired by seed."""
    quantities = QUANTITIES + OF_C
    keys = keys_of(*(quantity.panel for quantity in quantities))
    study = read_study(runs, SAC, keys, where).chosen(variants)
    out = Path(out)
    taken = set()
    paths = []
    for env in study.environments:
        part = study.of_environment(env)
        name = file_name(f"cr_constraint-{env.rpartition('/')[2]}", taken)
        title = f"CR, {env}: SAC"
        first = part.labels[0]
        paths += write_seeds(part, CONSTRAINT, out, f"{name}-seeds", title)
        paths += claims.write_claims(part, quantities, out, f"{name}-claims", title, first)
        paths += claims.write_summary(part, quantities, out, f"{name}-summary")
        paths.append(claims.write_last(part, quantities, out, f"{name}-last"))
    return paths
