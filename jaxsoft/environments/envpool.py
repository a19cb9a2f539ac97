"""EnvPool for training loops: in the compiled program, or driven from the host."""

from __future__ import annotations

import contextlib
import difflib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoft import _checks, _jax
from jaxsoft.agents.base import TimeStep
from jaxsoft.environments.autoreset import Answer, Memory, filled, interpret
from jaxsoft.environments.base import Space

__all__ = [
    "MOST_SEED",
    "About",
    "EnvPool",
    "GraphState",
    "HostEnvPool",
    "about",
    "last_seed",
    "runs_in_graph",
]

MOST_SEED = 2**31 - 2
"""The greatest seed of an environment that EnvPool takes."""

_OLDEST_JAX = (0, 9, 1)
"""That the handlers of EnvPool 1.2.5 run in."""


def last_seed(seeds: Sequence[int], num_envs: int) -> int:
    """The greatest seed of an environment: agent `seed` has those from seed · N on."""
    return (max(seeds) + 1) * num_envs - 1


def runs_in_graph(device: jax.Device | None = None) -> bool:
    """Whether EnvPool can be stepped inside a program for a device, or the default one."""
    return sys.platform == "linux" and _jax.platform(device) in ("cpu", "gpu")


class About(NamedTuple):
    """What there is to know about a game without playing it.

    Attributes:
      game: its EnvPool id.
      is_atari: whether it has frames to stack, lives and rewards to clip.
      observation: of the frames stacked; of a category, its one-hot vector.
      action: what an agent hands over.
      first_action: what EnvPool calls the first of discrete actions.
      one_hot: categories of the observations, or 0.
    """

    game: str
    is_atari: bool
    observation: Space
    action: Space
    first_action: int
    one_hot: int


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
            "Bring it as an environment of your own (jaxsoft.environments.base.Environment).",
        )
    action, observation = _space(actions), _space(observations)
    for what, space, given in (
        ("actions", action, actions),
        ("observations", observation, observations),
    ):
        if space is None:
            raise _checks.fail(
                "environments",
                f"{game} with {what} {given}",
                f"an environment whose {what} are an array or a category",
                "Bring it as an environment of your own (jaxsoft.environments.base.Environment).",
            )
    assert action is not None
    assert observation is not None
    one_hot = observation.categories
    if one_hot:
        observation = Space((one_hot,), np.dtype(np.float32), low=0, high=1)
    return About(
        game=game,
        is_atari=hasattr(spec.config, "full_action_space"),
        observation=observation,
        action=action,
        first_action=int(getattr(actions, "start", 0)) if action.categories else 0,
        one_hot=one_hot,
    )


def _space(given: Any) -> Space | None:
    """Gymnasium's space as ours; `None` for what is not one array, such as a dict."""
    if hasattr(given, "n"):
        if given.shape == ():
            return Space.discrete(int(given.n))
        return Space(given.shape, given.dtype, 0, 0, 1)  # of bits
    if not getattr(given, "shape", None) or not hasattr(given, "low"):
        return None
    dtype = np.dtype(jax.dtypes.canonicalize_dtype(given.dtype))
    return Space(tuple(given.shape), dtype, 0, given.low, given.high)


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
        if last_seed(seeds, num_envs) > MOST_SEED:
            raise _checks.fail(
                type(self).__name__,
                f"{max(seeds):_} and {num_envs:_} environments",
                f"(seed + 1) * num_envs up to {MOST_SEED + 1:_}, since each has a seed of its own",
                "Give smaller seeds, or fewer environments.",
            )
        self.about = about(game, **options)
        if self.about.is_atari:
            options["stack_num"] = 1
        # Agent `seed` has the same environments whoever trains beside it.
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
            spec = self.pool.action_space
        self.batch_shape = (len(seeds), high - low)
        self.observation = self.about.observation
        self.action = self.about.action
        # MuJoCo's actions are float64, whatever JAX computes in.
        self._action_dtype = np.dtype(np.int32 if self.action.categories else spec.dtype)

    def _sent(self, action: Any) -> Any:
        """Actions [S, N, *A] as EnvPool numbers and batches them."""
        return action.reshape(-1, *self.action.shape) + self.about.first_action

    def _answer(self, words: tuple[Any, ...]) -> Answer:
        """EnvPool's five words, their leading axis [S·N] unfolded to [S, N]."""
        frame, reward, done, truncated, info = words
        if self.about.one_hot:
            frame = jax.nn.one_hot(frame, self.about.one_hot)
        frame = frame.astype(self.observation.dtype)
        over = info["terminated"] != 0 if "terminated" in info else done
        answer = Answer(frame, reward, info.get("reward", reward), done, truncated, over)
        return Answer(*(x.reshape(self.batch_shape + x.shape[1:]) for x in answer))

    def _start(self, answer: Answer) -> tuple[Memory, TimeStep]:
        if self.about.is_atari:
            answer = answer._replace(frame=filled(answer.frame, self.observation.shape[0]))
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
      num_envs: N, environments per agent.
      seeds: of the S agents. Agent s has the same environments alone or beside others.
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
        if jax.__version_info__ < _OLDEST_JAX:
            raise _unfit()
        super().__init__(game, num_envs=num_envs, seeds=seeds, part=part, **options)
        spoken = self._action_dtype, *(x.dtype for x in self.pool.spec.state_array_spec.values())
        wide = any(np.dtype(dtype).itemsize > 4 for dtype in spoken)
        with jax.enable_x64(wide or jax.config.read("jax_enable_x64")):
            try:
                self._handle, _, _, step = self.pool.xla()
            except jax.errors.JaxRuntimeError as error:
                raise _unfit() from error
        self._step = _in_64_bits(step, self._action_dtype) if wide else step

    def reset(self) -> tuple[GraphState, TimeStep]:
        """Resets every environment."""
        memory, step = self._start(self._first_answer(self.pool.reset()))
        return GraphState(jnp.asarray(self._handle), memory), step

    def step(self, state: GraphState, action: Array) -> tuple[GraphState, TimeStep]:
        """Steps every environment by actions [S, N, *A]."""
        sent = self._sent(action.astype(jnp.int32) if self.action.categories else action)
        handle, words = self._step(state.handle, sent)
        memory, step = interpret(state.memory, self._answer(words))
        return GraphState(handle, memory), step


class HostEnvPool(_Pool):
    """EnvPool driven from the host, for devices that it cannot be stepped on.

    Sending and receiving are apart, so that the device can act for one pool while another
    emulates. The arguments are those of `EnvPool`.
    """

    _sending = False

    def reset(self) -> tuple[Memory, TimeStep]:
        """Resets every environment, also in the middle of a step."""
        if self._sending:
            self.recv()  # or EnvPool would answer with it
        return self._start(self._first_answer(self.pool.reset()))

    def send(self, action: np.ndarray) -> None:
        """Starts a step by actions [S, N, *A]."""
        self.pool.send(self._sent(np.asarray(action, self._action_dtype)))
        self._sending = True

    def recv(self) -> Answer:
        """Waits for the step and answers in NumPy."""
        words = self.pool.recv()
        self._sending = False
        return self._answer(words)


def _in_64_bits(step: Callable[..., Any], dtype: np.dtype) -> Callable[..., Any]:
    """A step of a pool that speaks float64, for a program that does not."""

    def stepped(handle: Array, action: Array) -> Any:
        computing = jax.dtypes.canonicalize_dtype(np.float64)
        with jax.enable_x64(True):
            handle, words = step(handle, action.astype(dtype))
            return handle, jax.tree.map(
                lambda x: x.astype(computing) if x.dtype == np.float64 else x, words
            )

    return stepped


def _import_envpool() -> Any:
    try:
        import envpool  # noqa: PLC0415 (environments of one's own need no EnvPool)
    except ImportError as error:
        raise ImportError(
            "EnvPool is not installed: pip install 'jaxsoft[train]'. It has wheels for Linux, "
            "Windows, and macOS on Apple silicon; elsewhere bring an environment of your own "
            "(jaxsoft.environments.base.Environment)."
        ) from error
    return envpool


def _unfit() -> ValueError:
    known = f"JAX {'.'.join(map(str, _OLDEST_JAX))} or newer"
    needed = known if jax.__version_info__ < _OLDEST_JAX else "another JAX"
    return _checks.fail(
        "EnvPool",
        f"JAX {jax.__version__}",
        f"{needed} for the handlers of EnvPool {_import_envpool().__version__}",
        "Bring both up to date: pip install --upgrade 'jaxsoft[train]'. Or step the emulators from "
        "the host: --driver host, or HostEnvPool.",
    )


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
