"""Environments: the available suites, how environments are created, what happens when one fails,
and the episodes that are trained on, played and evaluated (docs/environments.md)."""

from environments.control import (
    EpisodeSeeds,
    check_environments,
    check_equal_spaces,
    make_env,
    make_envs,
    sizes,
)
from environments.episodes import (
    Episode,
    Episodes,
    Transition,
    begin_episodes,
    evaluate,
    evaluation_episodes,
    film,
    log_episodes,
    play_episodes,
    random_actions,
    take_step,
    true_successors,
)
from environments.replay import ReplayBuffer
from environments.sequences import Evaluation, TaskSequence, sequence_length
from environments.suites import SUITES, Suite, check_ids, import_suites, suite_of

__all__ = [
    "SUITES",
    "Episode",
    "EpisodeSeeds",
    "Episodes",
    "Evaluation",
    "ReplayBuffer",
    "Suite",
    "TaskSequence",
    "Transition",
    "begin_episodes",
    "check_environments",
    "check_equal_spaces",
    "check_ids",
    "evaluate",
    "evaluation_episodes",
    "film",
    "import_suites",
    "log_episodes",
    "make_env",
    "make_envs",
    "play_episodes",
    "random_actions",
    "sequence_length",
    "sizes",
    "suite_of",
    "take_step",
    "true_successors",
]
