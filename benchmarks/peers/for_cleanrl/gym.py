"""What CleanRL's pqn_atari_envpool.py takes of gym 0.23, which does not go with numpy 2."""

from gymnasium import spaces  # noqa: F401


class Wrapper:
    """Everything of the environment, but what a subclass defines anew."""

    def __init__(self, env):
        self.env = env

    def __getattr__(self, name: str):
        return getattr(self.env, name)

    def reset(self, **kwargs):
        return self.env.reset(**kwargs)

    def step(self, action):
        return self.env.step(action)
