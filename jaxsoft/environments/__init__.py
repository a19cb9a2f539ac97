"""EnvPool for training loops: in the compiled program, or driven from the host.

What an environment answers is a `Step`, everything of shape [S, N, ...]: S independent learners
(seeds), N environments each. Whatever environment keeps to `Environment` can be trained on; one
written in JAX needs nothing of this module but that.

The trap that `Step.first` is there for: EnvPool ends an episode with its true last observation,
and the *next* step ignores its action and answers with the first observation of the new episode.
That step is no transition. It must have no weight in any loss, statistic or replay buffer, and no
sum may run across it. After a lost life (`episodic_life`) there is one, too.
"""

from __future__ import annotations

import contextlib
import difflib
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoft import _checks

__all__ = [
    "About",
    "Answer",
    "EnvPool",
    "Environment",
    "HostEnvPool",
    "Memory",
    "Step",
    "about",
    "interpret",
    "runs_in_graph",
]


class Step(NamedTuple):
    """What follows an action, [S, N, ...].

    Attributes:
      observation: what is seen now; at an end, the true last observation.
      reward: float32, what is learned from (clipped, if the environment was so made).
      score: float32, the raw reward, what is reported.
      terminated: the game is over by its own rules: the bootstrap is 0.
      truncated: a time limit cut the game: bootstrap from this observation.
      life_lost: the end of an episode for learning, not for the score.
      first: no transition led here: an episode starts with this observation.
      reset: a whole game starts here; `first` after a lost life is not one.
    """

    observation: Array
    reward: Array
    score: Array
    terminated: Array
    truncated: Array
    life_lost: Array
    first: Array
    reset: Array


class Environment(Protocol):
    """What a training loop asks of an environment inside the compiled program."""

    batch_shape: tuple[int, int]
    """(S, N)."""
    num_actions: int
    observation_shape: tuple[int, ...]
    """Of one observation."""
    observation_dtype: np.dtype

    def reset(self) -> tuple[Any, Step]:
        """A state and the first step, outside `jit`."""
        ...

    def step(self, state: Any, action: Array) -> tuple[Any, Step]:
        """The next state and step for actions [S, N], under `jit`."""
        ...


class Answer(NamedTuple):
    """EnvPool's own words for a step, [S, N, ...]."""

    frame: Array
    reward: Array
    score: Array
    done: Array  # terminated, or a life lost
    truncated: Array
    over: Array  # the game itself is


class Memory(NamedTuple):
    """What must be remembered of the last step to tell what the next one is."""

    observation: Array  # the newest frames, the last one last
    ended: Array  # an episode, for learning
    over: Array  # a game


def interpret(memory: Memory | None, answer: Answer) -> tuple[Memory, Step]:
    """Turns EnvPool's answer into a step, with its frames stacked as EnvPool would.

    Args:
      memory: of the last step; `None` at the start, where everything is a reset.
      answer: of a pool with `stack_num=1` for images, [S, N, 1, H, W], or 3 for colours.

    Returns:
      (memory, step).
    """
    reset = jnp.ones_like(answer.done) if memory is None else memory.over
    first = reset if memory is None else memory.ended
    if memory is None or memory.observation.shape == answer.frame.shape:
        observation = answer.frame
    else:
        channels = answer.frame.shape[2]
        shifted = jnp.concatenate([memory.observation[:, :, channels:], answer.frame], axis=2)
        alone = _filled(answer.frame, shifted.shape[2])
        mask = reset.reshape(reset.shape + (1,) * (shifted.ndim - reset.ndim))
        observation = jnp.where(mask, alone, shifted)
    # A time limit that falls on the game's own end is no truncation. EnvPool says `truncated` and
    # not `done` then; only of Atari games does it say besides whether they are over.
    terminated = (answer.done | answer.truncated) & answer.over
    truncated = answer.truncated & ~terminated
    life_lost = answer.done & ~terminated & ~truncated
    over = terminated | truncated
    step = Step(
        observation,
        answer.reward,
        answer.score,
        terminated,
        truncated,
        life_lost,
        first,
        reset,
    )
    return Memory(observation, over | life_lost, over), step


def _filled(frame: Array, channels: int) -> Array:
    """A stack of nothing but this frame [S, N, c, H, W]."""
    return jnp.tile(frame, (1, 1, channels // frame.shape[2], 1, 1))


def runs_in_graph() -> bool:
    """Whether EnvPool can be stepped inside the compiled program on the default device."""
    return sys.platform == "linux" and jax.default_backend() in ("cpu", "gpu")


class About(NamedTuple):
    """What there is to know about a game without playing it.

    Attributes:
      game: its EnvPool id.
      is_atari: whether it has frames to stack, lives and rewards to clip.
      num_actions: A.
      first_action: what EnvPool calls the first of them.
      observation_shape: of one observation, frames stacked.
      observation_dtype: its dtype.
      categories: of an observation that is one of so many, given as one-hot; else 0.
    """

    game: str
    is_atari: bool
    num_actions: int
    first_action: int
    observation_shape: tuple[int, ...]
    observation_dtype: np.dtype
    categories: int


def about(game: str, **options: Any) -> About:
    """Looks a game up; one that does not exist or cannot be trained on is refused.

    Args:
      game: an EnvPool id.
      **options: EnvPool's own, of which some change actions and observations.
    """
    envpool = _import_envpool()
    known = envpool.list_all_envs()
    if game not in known:
        raise _unknown_game(game, known)
    with _quietly():
        try:
            spec = envpool.make_spec(game, **options)
        except RuntimeError as error:
            raise _checks.fail(
                "environments",
                f"{game}, of which EnvPool says: {error}",
                "a game that EnvPool can make",
                "Pass the options that it needs, or train on another.",
            ) from error
        actions, observations = spec.gymnasium_action_space, spec.gymnasium_observation_space
    if spec.config.max_num_players > 1:
        raise _checks.fail(
            "environments",
            f"{game} with {spec.config.max_num_players} players",
            "an environment with one player",
            "Bring it as an environment of your own (jaxsoft.environments.Environment).",
        )
    if not _categories(actions):
        raise _checks.fail(
            "environments",
            f"{game} with actions {actions}",
            "an environment with discrete actions",
            "The library's policies are Boltzmann distributions over finitely many actions.",
        )
    categories = _categories(observations)
    if not categories and not getattr(observations, "shape", None):
        raise _checks.fail(
            "environments",
            f"{game} with observations {observations}",
            "an environment whose observations are images, vectors or categories",
            "Bring it as an environment of your own (jaxsoft.environments.Environment).",
        )
    return About(
        game,
        hasattr(spec.config, "stack_num") and hasattr(spec.config, "episodic_life"),
        int(actions.n),
        int(getattr(actions, "start", 0)),
        (categories,) if categories else tuple(observations.shape),
        np.dtype(np.float32) if categories else jax.dtypes.canonicalize_dtype(observations.dtype),
        categories,
    )


def _categories(space: Any) -> int:
    """Of how many numbers a space is one; 0 for others, such as buttons, which have an `n`, too."""
    return int(space.n) if hasattr(space, "n") and space.shape == () else 0


class _Pool:
    """A pool of S·N environments and what there is to know about it."""

    def __init__(
        self,
        game: str,
        *,
        num_envs: int,
        seeds: Sequence[int] = (0,),
        part: tuple[int, int] | None = None,
        **options: Any,
    ) -> None:
        num_envs = _checks.count(type(self).__name__, "num_envs", num_envs)
        low, high = part or (0, num_envs)
        self.about = about(game, **options)
        if self.about.is_atari:
            options["stack_num"] = 1
        # One seed an environment: learner `seed` has the same ones whoever trains beside it.
        env_seeds = [seed * num_envs + i for seed in seeds for i in range(low, high)]
        with _quietly():
            self.pool = _import_envpool().make(
                game,
                env_type="gymnasium",
                num_envs=len(env_seeds),
                seed=env_seeds,
                **options,
            )
            _ = self.pool.observation_space  # made on first use, and kept
        self.batch_shape = (len(seeds), high - low)
        self.num_actions = self.about.num_actions
        self.observation_shape = self.about.observation_shape
        self.observation_dtype = self.about.observation_dtype

    def _answer(self, words: tuple[Any, ...]) -> Answer:
        """EnvPool's five words, their leading axis [S·N] unfolded to [S, N]."""
        frame, reward, done, truncated, info = words
        if self.about.categories:
            frame = jax.nn.one_hot(frame, self.about.categories, dtype=self.observation_dtype)
        over = info["terminated"] != 0 if "terminated" in info else done
        answer = Answer(frame, reward, info.get("reward", reward), done, truncated, over)
        return Answer(*(x.reshape(self.batch_shape + x.shape[1:]) for x in answer))

    def _start(self, answer: Answer) -> tuple[Memory, Step]:
        if self.about.is_atari:
            answer = answer._replace(frame=_filled(answer.frame, self.observation_shape[0]))
        return interpret(None, answer)

    def _first_answer(self, words: tuple[Any, Any]) -> Answer:
        frame, info = words
        zero = np.zeros(len(frame), np.float32)
        no = np.zeros(len(frame), np.bool_)
        info = {name: x for name, x in info.items() if name == "terminated"}
        return self._answer((frame, zero, no, no, info))


class GraphState(NamedTuple):
    """EnvPool's handle, which orders the calls, and the memory of the last step."""

    handle: Array
    memory: Memory


class EnvPool(_Pool):
    """EnvPool stepped inside the compiled program, on Linux with a CPU or a CUDA device.

    The pool's address is part of the program: keep the object for as long as programs that step
    it may run. Under `vmap` it cannot be; that is what the S·N environments are for.

    Args:
      game: an EnvPool id, such as `"Pong-v5"` or `"CartPole-v1"`.
      num_envs: N, environments per learner.
      seeds: of the S learners. Learner s has the same environments alone or beside others.
      part: (low, high), to have only these of the N environments.
      **options: EnvPool's own, such as `episodic_life=True`.
    """

    def __init__(
        self,
        game: str,
        *,
        num_envs: int,
        seeds: Sequence[int] = (0,),
        part: tuple[int, int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(game, num_envs=num_envs, seeds=seeds, part=part, **options)
        self._handle, _, _, self._step = self.pool.xla()

    def reset(self) -> tuple[GraphState, Step]:
        """Resets every environment."""
        memory, step = self._start(self._first_answer(self.pool.reset()))
        return GraphState(jnp.asarray(self._handle), memory), step

    def step(self, state: GraphState, action: Array) -> tuple[GraphState, Step]:
        """Steps every environment by actions [S, N]."""
        sent = action.astype(jnp.int32).reshape(-1) + self.about.first_action
        handle, words = self._step(state.handle, sent)
        memory, step = interpret(state.memory, self._answer(words))
        return GraphState(handle, memory), step


class HostEnvPool(_Pool):
    """EnvPool driven from the host, for devices that it cannot be stepped on.

    Sending and receiving are apart, so that the device can act for one pool while another
    emulates. The arguments are those of `EnvPool`.
    """

    def reset(self) -> tuple[Memory, Step]:
        """Resets every environment."""
        return self._start(self._first_answer(self.pool.reset()))

    def send(self, action: np.ndarray) -> None:
        """Starts a step by actions [S, N]."""
        self.pool.send(np.asarray(action, np.int32).reshape(-1) + self.about.first_action)

    def recv(self) -> Answer:
        """Waits for the step and answers in NumPy."""
        return self._answer(self.pool.recv())


def _import_envpool() -> Any:
    try:
        import envpool  # noqa: PLC0415 (environments of one's own need no EnvPool)
    except ImportError as error:
        raise ImportError(
            "EnvPool is not installed: pip install 'jaxsoft[train]'. Its wheels are for Linux on "
            "x86-64; elsewhere bring an environment of your own (jaxsoft.environments.Environment)."
        ) from error
    return envpool


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without Gymnasium's warnings about the precision of bounds that nobody reads here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered.*")
        yield


def _unknown_game(game: str, known: Sequence[str]) -> ValueError:
    by_lower = {x.lower(): x for x in known}
    wanted = game.lower()
    near = [x for key, x in by_lower.items() if key.startswith(wanted.split("-")[0])][:5]
    near += [by_lower[x] for x in difflib.get_close_matches(wanted, by_lower, n=5, cutoff=0.5)]
    names = ", ".join(dict.fromkeys(near)) or "Pong-v5, Breakout-v5, Catch-v0, CartPole-v1"
    return _checks.fail(
        "environments",
        f"the game {game!r}",
        f"one of EnvPool's {len(known)} ids",
        f"Near ones: {names}.",
    )
