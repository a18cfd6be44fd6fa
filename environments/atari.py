"""Atari: games in ale_py's vector environment, whole games played by a policy, and the memory that
games and networks take (docs/dqn_atari.md)."""

import dataclasses
import re
from collections.abc import Callable

import gymnasium as gym
import numpy as np

from runlog import cli, memory, seeding, stopping
from runlog.terminal import UserError

OBSERVATION_BYTES = 4 * 84 * 84  # 4 frames, uint8
MAX_ACTIONS = 18  # of the game with the most
GAME_BYTES = 1_200_000  # per game in ale_py's vector environment
MAX_SCREENS = 2_000  # in a video
MAX_DESYNC_STEPS = 3_000  # of each game, in desynchronise
# Breakout, ALE/Breakout-v5, BreakoutNoFrameskip-v4, Breakout-ramDeterministic-v0, ...
ANY_ID = re.compile(r"(?:ALE/)?(\w+?)(?:-ram)?(?:NoFrameskip|Deterministic)?(?:-v\d+)?")


# ---- games -------------------------------------------------------------------------------------


def atari_game(env_id: str) -> tuple[str, str]:
    """(name, rom) of a game: ("Breakout", "breakout") for Breakout and ALE/Breakout-v5.

    Raises UserError for an unknown game.
    """
    roms = _roms()
    name = _plain_name(env_id)
    if name not in roms:
        _refuse_other_names(env_id)
        cli.check_choice("--env-id", env_id, roms)
    return name, roms[name]


def _refuse_other_names(env_id: str) -> None:
    """Raises UserError for another name of a game, or for an id of another environment."""
    game = game_of(env_id)
    if game is not None:
        problem = f"is called {game} here, and has 4 frames per step"
        raise UserError(f"--env-id {env_id}: {problem}; use --env-id {game}")
    if env_id in gym.registry or "/" in env_id.removeprefix("ALE/"):
        remedy = "for continuous control use sac_continuous.py or td3_continuous.py"
        raise UserError(f"--env-id {env_id}: is not an Atari game; {remedy}")


def game_of(env_id: str) -> str | None:
    """The game denoted by an id in any common form: Breakout for BreakoutNoFrameskip-v4 and for
    breakout. None if there is no such game, or no ale_py."""
    try:
        roms = _roms()
    except ImportError:
        return None
    found = ANY_ID.fullmatch(env_id)
    names = {name.lower(): name for name in roms}
    return names.get(found[1].lower()) if found else None


def _roms() -> dict[str, str]:
    """name -> rom of every game."""
    import ale_py  # noqa: F401  (registers the ids)

    roms = {}
    for registered, spec in gym.registry.items():
        if registered.startswith("ALE/") and registered.endswith("-v5"):
            roms[_plain_name(registered)] = spec.kwargs["game"]
    return roms


def _plain_name(env_id: str) -> str:
    return env_id.removeprefix("ALE/").removesuffix("-v5")


@dataclasses.dataclass
class FinishedGame:
    """A whole game, from its start until it was over or cut off by the time limit."""

    env: int  # index among the parallel games
    total: float  # its return: the sum of its raw rewards
    length: int  # steps


@dataclasses.dataclass
class GameStep:
    """The result of one step of all games; every array has one entry per game.

    Where a game has ended, `obs` is the first observation of the next one, and `real_next_obs` the
    last one of the ended game; elsewhere both are the same.
    """

    obs: np.ndarray  # (num_envs, 4, 84, 84) uint8
    rewards: np.ndarray  # raw
    # bool: a lost life or the end of the game, either of which ends the learner's episode
    terminations: np.ndarray
    truncations: np.ndarray  # bool: the time limit
    real_next_obs: np.ndarray
    games: list[FinishedGame]

    @property
    def game_overs(self) -> np.ndarray:
        """(num_envs,) bool: the games that have ended with this step."""
        game_overs = np.zeros(len(self.obs), bool)
        for game in self.games:
            game_overs[game.env] = True
        return game_overs


class AtariGames:
    """Games in ale_py's vector environment: 4 frames per step, the maximum of the last two, grey,
    84x84, 4 stacked.

    A lost life is a termination for the learner, and the game continues: with `fire_on_life_loss`
    its next step presses fire, overriding the action, in games that have that button. Rewards are
    raw; `step` returns the games that have ended.

    num_threads: threads that step the games, 0 = one per core. options: further options of ale_py's
    AtariVectorEnv.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        repeat_action_probability: float = 0.0,
        fire_on_life_loss: bool = True,
        num_threads: int = 0,
        **options,
    ):
        from ale_py.vector_env import AtariVectorEnv

        _, rom = atari_game(env_id)
        self.envs = AtariVectorEnv(
            rom,
            num_envs,
            repeat_action_probability=repeat_action_probability,
            num_threads=num_threads,
            autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
            reward_clipping=False,
            life_loss_info=True,
            **options,
        )
        buttons = [action.name for action in self.envs.ale.get_action_set()]
        self.fire = None  # the action that presses fire after a lost life
        if fire_on_life_loss and "FIRE" in buttons:
            self.fire = buttons.index("FIRE")
        self.num_envs = num_envs
        self.num_actions = len(buttons)

    def reset(self, seed: int, *keys: str | int) -> np.ndarray:
        """Starts new games, seeded by (seed, keys); returns observations (num_envs, 4, 84, 84)
        uint8."""
        seeds = [seeding.derive_seed(seed, *keys, i) % 2**31 for i in range(self.num_envs)]
        obs, info = self.envs.reset(seed=np.array(seeds))
        self.frames = info["episode_frame_number"]
        self.lives = info["lives"]  # (num_envs,) lives left
        self.returns = np.zeros(self.num_envs)
        self.lengths = np.zeros(self.num_envs)
        self.lost_life = np.zeros(self.num_envs, bool)
        return obs

    def step(self, actions: np.ndarray) -> GameStep:
        """Takes one action (num_envs,) in each game."""
        if self.fire is not None:
            actions = np.where(self.lost_life, self.fire, actions)
        obs, rewards, terminations, truncations, info = self.envs.step(actions)

        over = info["episode_frame_number"] < self.frames  # the frame counter has been reset
        self.frames = info["episode_frame_number"]
        self.lives = info["lives"]
        self.lost_life = terminations & ~over
        real_next_obs = obs
        if over.any():  # ale_py's final_obs is correct only where a game has ended
            real_next_obs = np.where(over[:, None, None, None], info["final_obs"], obs)

        self.returns = self.returns + rewards
        self.lengths = self.lengths + 1
        games = []
        for i in np.flatnonzero(over):
            games.append(FinishedGame(int(i), float(self.returns[i]), int(self.lengths[i])))
        self.returns[over] = 0
        self.lengths[over] = 0
        return GameStep(obs, rewards, terminations, truncations, real_next_obs, games)


def desynchronise(
    games: AtariGames,
    policy: Callable[[np.ndarray], np.ndarray],
    obs: np.ndarray,
    num_training: int,
) -> np.ndarray:
    """Plays games that have just started together until each of the first `num_training` has ended
    once, for at most MAX_DESYNC_STEPS steps; returns their observations (num_envs, 4, 84, 84)
    uint8.

    Games that start together resemble each other for as long as they last. policy: observations ->
    actions, both numpy. obs: what `games.reset` returned. Raises Stopped if a signal asks the
    training to stop: there is nothing to save yet.
    """
    is_running = np.ones(games.num_envs, bool)
    is_running[num_training:] = False
    for _ in range(MAX_DESYNC_STEPS):
        if not is_running.any():
            break
        stopping.stop_if_requested()
        played = games.step(policy(obs))
        obs = played.obs
        is_running &= ~played.game_overs
    return obs


def play_games(
    make_games: Callable[..., AtariGames],
    policy: Callable[[np.ndarray], np.ndarray],
    number: int,
    seed: int,
    screens: list | None = None,
) -> list[float]:
    """The raw returns of `number` whole games in parallel.

    Only the first game of each environment counts, so that short games count no more than long
    ones. make_games: number of games and further options of AtariGames -> games. policy:
    observations -> actions, both numpy. screens: receives every fourth screen of game 0 (RGB, the
    first MAX_SCREENS).
    """
    games = make_games(number)
    obs = games.reset(seed, "play")
    film = None
    if screens is not None:  # one more environment plays game 0 again, in colour
        film = make_games(1, img_height=210, img_width=160, stack_num=1, grayscale=False)
        screens.append(film.reset(seed, "play")[0, -1])

    returns = {}
    num_steps = 0
    while len(returns) < number:
        actions = policy(obs)
        step = games.step(actions)
        obs = step.obs
        num_steps += 1
        if film is not None and 0 not in returns and len(screens) < MAX_SCREENS:
            screen = film.step(actions[:1]).obs[0, -1]
            if num_steps % 4 == 0:
                screens.append(screen)
        for game in step.games:
            returns.setdefault(game.env, game.total)
    return [returns[i] for i in range(number)]


# ---- memory ------------------------------------------------------------------------------------


@dataclasses.dataclass
class LearnerBytes:
    """Bytes taken by a Nature CNN and its training."""

    parameters: int  # the network alone
    training: int  # the network, its gradients and Adam's moments
    observation: int  # per observation of a batch: as stored, as floats, and what the layers keep
    ntk_sample: int  # per observation of the neural tangent kernel


def learner_bytes(
    encoder: tuple[str, ...], activation: str, width: int, layer_norm: str, outputs: int
) -> LearnerBytes:
    """For a network of `nature_cnn_size`."""
    network = nature_cnn_size(encoder, activation, width, layer_norm, outputs)
    parameters = memory.FLOAT_BYTES * network.parameters
    floats = OBSERVATION_BYTES + network.activations
    return LearnerBytes(
        parameters=parameters,
        training=memory.ADAM_COPIES * parameters,
        observation=OBSERVATION_BYTES + memory.FLOAT_BYTES * floats,
        ntk_sample=memory.NTK_COPIES * parameters,
    )


def nature_cnn_size(
    encoder: tuple[str, ...], activation: str, width: int, layer_norm: str, outputs: int
) -> memory.NetworkSize:
    """NetworkSize of the Nature CNN (Mnih et al. 2015) with a linear output layer.

    encoder: activation of the convolutions, one for all or three. activation, width: of the last
    hidden layer. layer_norm: channel, chw or none.
    """
    if len(encoder) == 1:
        encoder = encoder * 3
    size = memory.NetworkSize()
    features = 4
    layers = ((32, 8, 20), (64, 4, 9), (64, 3, 7))  # channels, kernel size, height and width
    for (channels, kernel, side), expression in zip(layers, encoder):
        normalised = {"none": 0, "channel": channels, "chw": channels * side**2}[layer_norm]
        features = size.add_layer(features, channels, expression, normalised, kernel**2, side**2)
    normalised = 0 if layer_norm == "none" else width
    features = size.add_layer(features * 7 * 7, width, activation, normalised)
    size.add_head(features, outputs)
    return size
