"""Environments: which there are, how they are made, and what happens when one fails (docs/environments.md)."""

from environments.control import (
    EpisodeSeeds,
    check_environments,
    check_equal_spaces,
    count_errors,
    log_errors,
    make_env,
    make_envs,
    play_episodes,
    true_successors,
)
from environments.suites import SUITES, Suite, import_suites, suite_of

__all__ = [
    "SUITES",
    "EpisodeSeeds",
    "Suite",
    "check_environments",
    "check_equal_spaces",
    "count_errors",
    "import_suites",
    "log_errors",
    "make_env",
    "make_envs",
    "play_episodes",
    "suite_of",
    "true_successors",
]
