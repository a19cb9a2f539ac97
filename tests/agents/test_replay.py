"""Replay, against a history that is never overwritten and stacks that are stored whole."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsoft.agents import replay
from jaxsoft.agents.base import Rollout
from tests.support.memory import temporaries
from tests.support.steps import of_numpy

add = jax.jit(replay.add)
sample = jax.jit(replay.sample, static_argnames=("batch_size", "n", "stack"))


class Row(NamedTuple):
    """A step of one environment: its state, whole, and what was done there."""

    observation: np.ndarray
    action: np.ndarray
    reward: float
    discount: float
    cut: bool
    weight: float
    first: bool


class History:
    """Random games of N environments, all of which is kept: the oracle.

    A frame is (environment, time), so that every one is told from every other. Actions are pairs
    of real numbers, and extras a tree that follows from them.
    """

    def __init__(self, seed: int, num_envs: int, stack: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.stack = stack
        self.rows: list[list[Row]] = [[] for _ in range(num_envs)]
        self.restarts: list[int] = []
        self.now = [self._state(env, None) for env in range(num_envs)]
        self.ended = [""] * num_envs

    def _state(self, env: int, before: np.ndarray | None) -> tuple[np.ndarray, bool]:
        """The next state; without one before it, a game starts."""
        frame = np.array([env, len(self.rows[env])], np.int32)
        if self.stack == 1:
            return frame, before is None
        if before is None:
            return np.stack([frame] * self.stack), True
        return np.stack([*before[1:], frame]), False

    def restart(self) -> None:
        """All games are lost; the environments start again with nothing in between."""
        self.restarts.append(len(self.rows[0]))
        self.now = [self._state(env, None) for env in range(len(self.rows))]
        self.ended = [""] * len(self.rows)

    def _step(self, env: int) -> None:
        observation, first = self.now[env]
        dummy, game_over = self.ended[env], self.ended[env] in ("terminated", "truncated")
        kinds = ["", "life", "terminated", "truncated"]
        end = "" if dummy else self.rng.choice(kinds, p=[0.6, 0.16, 0.12, 0.12])
        self.rows[env].append(
            Row(
                observation,
                self.rng.normal(size=2).astype(np.float32),
                float(np.float32(self.rng.normal())),
                0.0 if end in ("life", "terminated") else 1.0,
                bool(end or dummy),
                0.0 if dummy else 1.0,
                first,
            )
        )
        self.ended[env] = end
        self.now[env] = self._state(env, None if game_over else observation)

    def rollout(self, length: int) -> Rollout:
        for _ in range(length):
            for env in range(len(self.rows)):
                self._step(env)
        rows = [env[-length:] for env in self.rows]
        columns = [np.swapaxes(np.array(x), 0, 1) for x in zip(*map(zip_rows, rows), strict=True)]
        last = [np.stack(x) for x in zip(*self.now, strict=True)]
        columns[0] = np.concatenate([columns[0], last[0][None]])
        columns[-1] = np.concatenate([columns[-1], last[1][None]])
        return with_extras(of_numpy(Rollout, *columns))

    def window(self, env: int, start: int, n: int) -> Rollout:
        """Steps start … start + n − 1 of an environment and the state behind them."""
        rows = self.rows[env][start : start + n + 1]
        columns = [np.array(x) for x in zip_rows(rows)]
        window = of_numpy(Rollout, columns[0], *(x[:-1] for x in columns[1:-1]), columns[-1])
        for i in range(n):
            # A step after which nothing follows, whatever it led to, has lost nothing.
            lost = window.weight[i] > 0 and window.discount[i] > 0
            if start + i + 1 in self.restarts and lost:
                window.weight[i] = 0
                window.cut[max(i - 1, 0) : i + 1] = True
        return with_extras(window)

    def check(self, windows: Rollout, n: int) -> set[tuple[int, int]]:
        """Compares windows with history, and says which they are: (environment, start)."""
        windows = jax.tree.map(np.asarray, windows)
        assert windows.observation.shape[0] == n + 1
        found = set()
        for b in range(windows.action.shape[1]):
            first = windows.observation[0, b]
            env, start = map(int, first[-1] if self.stack > 1 else first)
            if (env, start) in found:
                continue
            expected = self.window(env, start, n)
            actual = jax.tree.map(lambda x, b=b: x[:, b], windows)
            same = functools.partial(np.testing.assert_array_equal, err_msg=f"{env}, {start}")
            jax.tree.map(same, actual, expected)
            found.add((env, start))
        return found


def with_extras(rollout: Rollout) -> Rollout:
    extras = {"sum": rollout.action.sum(-1), "own": (np.int32(8 * rollout.action[..., None]),)}
    return rollout._replace(extras=extras)


def zip_rows(rows: list[Row]) -> list[tuple]:
    return list(zip(*rows, strict=True))


def like(dtype: type, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


CHOICE = like(jnp.int32)


def empty(rows: int, num_envs: int, stack: int) -> replay.Replay:
    return replay.init(
        rows * num_envs,
        num_envs,
        like(jnp.int32, stack, 2) if stack > 1 else like(jnp.int32, 2),
        like(jnp.float32, 2),
        extras={"sum": like(jnp.float32), "own": (like(jnp.int32, 2, 1),)},
        stack=stack,
    )


def starts(history: History, rows: int, n: int, stack: int) -> set[tuple[int, int]]:
    """All windows that lie in a ring of so many rows, their first stacks too."""
    newest, oldest = len(history.rows[0]) - 1, max(len(history.rows[0]) - rows, 0)
    times = range(oldest + stack - 1, newest - n + 1)
    return {(env, t) for env in range(len(history.rows)) for t in times}


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize(
    ("rows", "num_envs", "length", "stack", "n"),
    [(12, 2, 4, 4, 1), (13, 3, 4, 4, 3), (11, 1, 11, 3, 5), (7, 2, 3, 1, 2), (9, 2, 1, 2, 7)],
)
def test_every_window_is_a_piece_of_history(rows, num_envs, length, stack, n, restarts):
    history = History(rows + num_envs, num_envs, stack)
    ring = empty(rows, num_envs, stack)
    for i in range(4 * rows // length):
        if restarts and i % 3 == 2:
            history.restart()
        ring = add(ring, history.rollout(length))
        allowed = starts(history, rows, n, stack)
        assert replay.num_starts(ring, n, stack=stack) * num_envs == len(allowed)
        if allowed:
            windows = sample(ring, jax.random.key(i), 40 * num_envs * rows, n, stack=stack)
            # With forty draws a row none is left out: the windows are those allowed, and all.
            assert history.check(windows, n) == allowed


@settings(max_examples=5)
@given(
    rows=st.integers(6, 12),
    num_envs=st.integers(1, 4),
    stack=st.integers(1, 4),
    n=st.integers(1, 2),
    lengths=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    seed=st.integers(0, 99),
)
def test_rollouts_of_any_lengths(rows, num_envs, stack, n, lengths, seed):
    history, ring = History(seed, num_envs, stack), empty(rows, num_envs, stack)
    for length in lengths:
        ring = add(ring, history.rollout(length))
    allowed = starts(history, rows, n, stack)
    assert replay.num_starts(ring, n, stack=stack) * num_envs == len(allowed)
    if allowed:
        windows = sample(ring, jax.random.key(seed), 64, n, stack=stack)
        assert history.check(windows, n) <= allowed


def test_windows_are_drawn_uniformly():
    rows, num_envs, draws = 10, 3, 90_000
    history, ring = History(0, num_envs, 2), empty(rows, num_envs, 2)
    for _ in range(4):
        ring = add(ring, history.rollout(4))
    windows = sample(ring, jax.random.key(0), draws, 1, stack=2)
    env, start = np.asarray(windows.observation)[0, :, -1].T
    counts = np.unique(num_envs * start + env, return_counts=True)[1]
    expected = draws / len(starts(history, rows, 1, 2))
    assert len(counts) == len(starts(history, rows, 1, 2))
    # χ² of 23 degrees of freedom: 49.7 is its 0.1 % quantile.
    assert np.sum((counts - expected) ** 2 / expected) < 49.7


def test_keys_decide_what_is_drawn():
    history, ring = History(0, 4, 1), empty(50, 4, 1)
    ring = add(ring, history.rollout(50))
    draws = [sample(ring, jax.random.key(i), 16, 1).observation for i in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.any(draws[0] != draws[2])


def test_images_of_bytes_come_back_as_they_were():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (60, 2, 5, 6), dtype=np.uint8)
    stacks = np.stack([frames[i : i + 57] for i in range(4)], axis=2)
    ring = replay.init(2 * 16, 2, like(jnp.uint8, 4, 5, 6), CHOICE, stack=4)
    assert ring.frame.dtype == jnp.uint8
    assert ring.frame.nbytes == 2 * 16 * 5 * 6
    for t in range(0, 56, 4):
        none, no = np.zeros((4, 2)), np.zeros((4, 2), bool)
        first = np.zeros((5, 2), bool)
        steps = of_numpy(
            Rollout, stacks[t : t + 5], none.astype(int), none, none + 1, no, none + 1, first
        )
        ring = add(ring, steps)
    windows = sample(ring, jax.random.key(0), 30, 2, stack=4)
    known = {stacks[t, env].tobytes(): t for t in range(57) for env in range(2)}
    times = np.array([[known[x.tobytes()] for x in state] for state in np.asarray(windows[0])])
    np.testing.assert_array_equal(times[1:], times[:-1] + 1)
    assert times.min() >= 56 - 16 + 3


@pytest.mark.parametrize("stack", [1, 3])
def test_seeds_side_by_side_get_what_they_get_alone(stack):
    histories = [History(seed, 2, stack) for seed in range(2)]
    rings = [empty(8, 2, stack) for _ in histories]
    together = jax.tree.map(lambda *x: jnp.stack(x), *rings)
    keys = jax.random.split(jax.random.key(0), 2)
    add_all = jax.jit(jax.vmap(replay.add))
    draw = functools.partial(replay.sample, batch_size=16, n=2, stack=stack)
    draw_all = jax.jit(jax.vmap(draw))
    for _ in range(5):
        rollouts = [history.rollout(3) for history in histories]
        rings = [add(*x) for x in zip(rings, rollouts, strict=True)]
        together = add_all(together, jax.tree.map(lambda *x: jnp.stack(x), *rollouts))
    alone = [sample(*x, 16, 2, stack=stack) for x in zip(rings, keys, strict=True)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *alone)
    jax.tree.map(np.testing.assert_array_equal, draw_all(together, keys), stacked)


def _updates(ring, rollout):
    """What a training program does: adds and samples alternately, the ring in a scan's carry."""

    def update(ring, key):
        ring = replay.add(ring, rollout)
        return ring, replay.sample(ring, key, 4, 1, stack=4).observation.sum()

    return jax.lax.scan(update, ring, jax.random.split(jax.random.key(0), 3))


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("program", [replay.add, _updates])
def test_adding_copies_no_ring(program, seeds):
    ring = replay.init(4 * 512, 4, like(jnp.uint8, 4, 16, 16), CHOICE, stack=4)
    none, no = jnp.zeros((2, 4)), jnp.zeros((2, 4), bool)
    seen = jnp.zeros((3, 4, 4, 16, 16), jnp.uint8)
    rollout = Rollout(seen, none.astype(int), none, none, no, none, jnp.zeros((3, 4), bool))
    if seeds > 1:
        ring, rollout = (
            jax.tree.map(lambda x: jnp.stack([x] * seeds), tree) for tree in (ring, rollout)
        )
        program = jax.vmap(program)
    size, where = ring.frame.nbytes, ring.frame.unsafe_buffer_pointer()
    compiled = jax.jit(program, donate_argnums=0).lower(ring, rollout).compile()
    assert temporaries(compiled) < size / 8
    new = jax.tree.leaves(compiled(ring, rollout))[0]
    assert new.unsafe_buffer_pointer() == where


def test_a_million_atari_transitions_take_seven_gigabytes():
    ring = jax.eval_shape(
        lambda: replay.init(1_000_000, 16, like(jnp.uint8, 4, 84, 84), CHOICE, stack=4)
    )
    assert ring.frame.shape == (62_500, 16, 84, 84)
    total = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(ring))
    assert 7.056e9 < total < 7.056e9 * 1.003


def test_what_does_not_divide_the_capacity_is_left_out():
    assert replay.init(1003, 10, like(jnp.float32, 3), CHOICE).action.shape == (100, 10)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: replay.init(16, 4, like(int, 4, 2), CHOICE, stack=4),
            "capacity of 4 steps.*Raise .* to 20",
        ),
        (lambda: replay.init(100, 4, like(int, 3, 2), CHOICE, stack=4), "stack=1"),
        (lambda: replay.init(100, 0, like(int, 3), CHOICE), "num_envs"),
        (lambda: add(empty(8, 2, 2), History(0, 3, 2).rollout(4)), "a rollout of 4 steps"),
        (
            lambda: add(
                empty(8, 2, 2),
                History(0, 2, 1).rollout(4)._replace(observation=jnp.zeros((5, 2, 3))),
            ),
            r"frames \[2\]",
        ),
        (lambda: add(empty(8, 2, 2), History(0, 2, 2).rollout(9)), "T <= 8"),
        (
            lambda: add(
                empty(8, 2, 2), History(0, 2, 2).rollout(4)._replace(action=jnp.zeros((4, 2)))
            ),
            r"expected \[T, 2, 2\].*, got actions \[4, 2\]",
        ),
        *(
            (
                lambda extras=extras: add(
                    empty(8, 2, 2), History(0, 2, 2).rollout(4)._replace(extras=extras)
                ),
                "expected {.*}, as the ring was made for, got extras",
            )
            for extras in (
                None,
                {"sum": np.zeros((4, 2))},
                {"sum": np.zeros((4, 2)), "own": (np.zeros((4, 2, 1, 1)),)},
            )
        ),
        (lambda: sample(empty(8, 2, 2), jax.random.key(0), 4, 7, stack=2), "at least 9"),
        (lambda: sample(empty(8, 2, 2), jax.random.key(0), 4, 0, stack=2), "n >= 1"),
    ],
)
def test_mistakes_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
