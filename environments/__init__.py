"""Environments: which there are, how they are made, what happens when one fails, and the episodes
that are trained in, played and evaluated (docs/environments.md)."""

from environments.control import (
    EpisodeSeeds,
    check_environments,
    check_equal_spaces,
    import_suites,
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
    film,
    log_episodes,
    play_episodes,
    random_actions,
    take_step,
    true_successors,
)
from environments.sequences import Evaluation, TaskSequence, sequence_length

__all__ = [
    "Episode",
    "EpisodeSeeds",
    "Episodes",
    "Evaluation",
    "TaskSequence",
    "Transition",
    "begin_episodes",
    "check_environments",
    "check_equal_spaces",
    "evaluate",
    "film",
    "import_suites",
    "log_episodes",
    "make_env",
    "make_envs",
    "play_episodes",
    "random_actions",
    "sequence_length",
    "sizes",
    "take_step",
    "true_successors",
]
