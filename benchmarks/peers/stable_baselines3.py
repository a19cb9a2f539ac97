"""stable-baselines3's A2C on EnvPool, for `training`; needs stable-baselines3."""

from typing import Any

import envpool
import gymnasium
import numpy as np
from stable_baselines3 import A2C
from stable_baselines3.common.vec_env import VecEnv


class EnvPoolVec(VecEnv):
    """EnvPool as stable-baselines3 takes environments."""

    def __init__(self, game: str, num_envs: int, **options: Any) -> None:
        self.pool = envpool.make_gymnasium(game, num_envs=num_envs, **options)
        shape, dtype = self.pool.observation_space.shape, self.pool.observation_space.dtype
        observations = gymnasium.spaces.Box(0, 255, shape, dtype)
        actions = gymnasium.spaces.Discrete(int(self.pool.action_space.n))
        super().__init__(num_envs, observations, actions)
        self.chosen = np.zeros(num_envs, np.int32)

    def reset(self) -> Any:
        return self.pool.reset()[0]

    def step_async(self, actions: Any) -> None:
        self.chosen = actions.astype(np.int32)

    def step_wait(self) -> Any:
        observation, reward, terminated, truncated, _ = self.pool.step(self.chosen)
        # No more than throughput needs: the step after an end, which resets, stays in.
        return observation, reward, terminated | truncated, [{} for _ in range(self.num_envs)]

    def close(self) -> None:
        self.pool.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> Any:  # noqa: ARG002
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> Any:  # noqa: ARG002
        return [False] * self.num_envs


def a2c(game: str, num_envs: int, length: int, updates: int, **options: Any) -> Any:
    """A call that trains for some updates, with the settings of the paper's A2C."""
    model = A2C(
        "CnnPolicy",
        EnvPoolVec(game, num_envs, **options),
        n_steps=length,
        learning_rate=7e-4,
        ent_coef=0.01,
        vf_coef=0.5,
        verbose=0,
    )
    steps = num_envs * length * updates
    return lambda: model.learn(steps, reset_num_timesteps=False, log_interval=10**9)
