"""Rollouts and scores: no sum crosses an auto-reset, and every kind of end bootstraps rightly."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

import jaxsoft
from jaxsoft import environments
from jaxsoft.agents.base import Rollout, TimeStep
from jaxsoft.environments.autoreset import interpret
from jaxsoft.training.collect import assemble, no_games, score
from tests.support import worlds
from tests.support.steps import ends, of_numpy


@functools.cache
def wander(length=160, num_envs=8, seeds=(0,)):
    """(start, actions, steps) of random play in the small world."""
    world = worlds.World(num_envs, seeds)
    state, start = world.reset()
    action = np.random.default_rng(0).integers(2, size=(length, *world.batch_shape))
    _, steps = jax.jit(lambda s, a: jax.lax.scan(world.step, s, a))(state, action)
    start, steps = jax.tree.map(np.asarray, (start, steps))
    return start, action, steps


@functools.cache
def rollout():
    return jax.tree.map(np.asarray, assemble(*wander()))


def residuals(rollout, q, n):
    """Path consistencies [T, S, N] of soft-optimal values; 0 on *every* path of transitions."""
    v = worlds.soft_value(q)
    log_ratio = ((q - v[:, None]) / worlds.TAU)[rollout.observation[:-1], rollout.action]
    v = v[rollout.observation]
    discount = worlds.GAMMA * rollout.discount
    delta = jaxsoft.td_errors(
        v[:-1], rollout.reward, discount, v_t=v[1:], kl_tm1=log_ratio, tau=worlds.TAU
    )
    advantage = jaxsoft.n_step_advantages(delta, discount, n=n, cut_t=rollout.cut)
    return rollout.weight * advantage


def in_doubles(rollout):
    return rollout._replace(
        reward=rollout.reward.astype(np.float64), discount=rollout.discount.astype(np.float64)
    )


@pytest.mark.parametrize("n", [1, 3, 200])
def test_exact_values_are_consistent_along_every_rollout(n):
    given, (*_, steps) = in_doubles(rollout()), wander()
    kinds = (*ends(steps), given.weight == 0, given.first[1:])
    assert all(np.sum(kind) > 20 for kind in kinds)
    np.testing.assert_allclose(residuals(given, worlds.solve(), n), 0, atol=1e-12)


def wrong():
    *_, steps = wander()
    right = rollout()
    over, life_lost, truncated = ends(steps)

    def ignored(end):
        """Values and sums run across it."""
        return right._replace(discount=np.where(end, 1, right.discount), cut=right.cut & ~end)

    return {
        "automatic resets counted": right._replace(weight=np.ones_like(right.weight)),
        "a lost life is ignored": ignored(life_lost),
        "a lost life is a truncation": right._replace(
            discount=np.where(life_lost, 1, right.discount)
        ),
        "the end of a game is ignored": ignored(over),
        "the end of a game is a truncation": right._replace(
            discount=np.where(over, 1, right.discount)
        ),
        "a truncation is terminal": right._replace(discount=np.where(truncated, 0, right.discount)),
        "a truncation is ignored": ignored(truncated),
        "only whole games reset": right._replace(weight=1.0 - steps.first),
    }


@pytest.mark.parametrize("mistake", wrong())
def test_the_same_values_are_inconsistent_where_a_mask_is_wrong(mistake):
    assert np.abs(residuals(in_doubles(wrong()[mistake]), worlds.solve(), 3)).max() > 0.1


def test_a_lost_life_is_terminal_for_values_but_a_truncation_is_not():
    """The exact values differ, so the test above can tell."""
    lives = worlds.solve(np.where(worlds.END == worlds.LIFE, worlds.GO_ON, worlds.END))
    assert np.abs(lives - worlds.solve()).max() > 0.1
    assert np.abs(residuals(in_doubles(rollout()), lives, 3)).max() > 0.1


def test_rollout_from_its_definition():
    start, action, steps = wander(24)
    extras = {"at": np.arange(24), "of": (action,)}
    got = assemble(start, action, steps, extras)
    # Of types of their own, so that an agent may keep them.
    for x in (got.weight, got.discount, got.reward):
        assert x.dtype == np.float32
        assert not jax.typeof(x).weak_type
    assert got.cut.dtype == got.first.dtype == bool
    whole = jax.tree.map(lambda a, b: np.concatenate([a[None], b]), start, steps)
    expected = Rollout(
        whole.observation,
        action,
        *(steps.reward, steps.discount, steps.cut, steps.weight),
        whole.first,
        extras,
    )
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_ends_have_one_vocabulary():
    """What `base` says of discount, cut, weight and first, of the world the tests are made on."""
    start, _, steps = wander(60)
    dummy = np.concatenate([np.zeros_like(steps.over[:1]), (steps.cut & (steps.weight > 0))[:-1]])
    over = np.concatenate([np.zeros_like(steps.over[:1]), steps.over[:-1]])
    np.testing.assert_array_equal(steps.weight, 1 - dummy)
    np.testing.assert_array_equal(steps.first, over)
    assert np.all(steps.cut[dummy])
    assert np.all(steps.discount[dummy] == 1)
    assert np.all(steps.score[dummy] == 0)
    assert np.all(steps.cut[(steps.discount == 0) | steps.over])
    assert np.all(start.first & start.cut & (start.weight == 0))


def finished_games(steps):
    """[(return, length)] of each seed's finished games, one step at a time."""
    length, seeds, envs = steps.score.shape
    games: list[list[Any]] = [[] for _ in range(seeds)]
    for s, n in np.ndindex(seeds, envs):
        total, played = 0.0, 0
        for t in range(length):
            if steps.weight[t, s, n]:
                total += steps.score[t, s, n]
                played += 1
            if steps.over[t, s, n]:
                games[s].append((total, played))
                total, played = 0.0, 0
    return games


def sums(games):
    """What `Finished` sums, [4, S]."""
    each = [[len(g), *np.sum([(r, r**2, k) for r, k in g], axis=0)] for g in games]
    return np.transpose(each)


def in_chunks(steps, size):
    games, total = no_games(steps.first.shape[1:]), np.zeros(())
    one = jax.jit(score)
    for start in range(0, len(steps.first), size):
        games, finished = one(games, jax.tree.map(lambda x, a=start: x[a : a + size], steps))
        total = total + np.stack(finished)
    return games, total


@pytest.mark.parametrize("size", [1, 7, 160])
def test_scores_of_the_world_in_chunks_of_any_size(size):
    *_, steps = wander(160, 4, (0, 2))
    games, total = in_chunks(steps, size)
    # Rewards are multiples of a quarter: sums are exact.
    np.testing.assert_array_equal(total, sums(finished_games(steps)))
    assert total[0].min() > 20
    whole, _ = in_chunks(steps, 160)
    np.testing.assert_array_equal(np.stack(games), np.stack(whole))


def test_games_under_way_are_not_scored():
    *_, steps = wander(160, 4, (0, 2))
    games, total = in_chunks(steps, 160)
    played = np.sum(total[3]) + np.sum(games.length)
    assert played == np.sum(steps.weight)
    earned = np.sum(total[1]) + np.sum(games.score)
    assert earned == np.sum(steps.score)


def test_only_whole_games_are_scored():
    """A lost life ends no game, whatever it is to a loss."""
    *_, steps = wander(160, 4, (0, 2))
    assert np.sum(ends(steps)[1]) > 20
    blind = steps._replace(**dict.fromkeys(("observation", "reward", "discount", "cut", "first")))
    for a, b in zip(score(no_games((2, 4)), steps), score(no_games((2, 4)), blind), strict=True):
        np.testing.assert_array_equal(np.stack(a), np.stack(b))


def test_the_score_is_raw():
    one = np.ones((1, 1, 1), np.float32)
    yes = one > 0
    step = of_numpy(TimeStep, None, one, 0 * one, yes, one, ~yes, 30 * one, yes)
    _, finished = score(no_games((1, 1)), step)
    np.testing.assert_array_equal(np.stack(finished)[:, 0], [1, 30, 900, 1])


def play(game, length, **options):
    """Steps [T, S, N] of random play."""
    pool = environments.HostEnvPool(game, **options)
    memory, _ = pool.reset()
    rng = np.random.default_rng(1)
    one = jax.jit(interpret)
    steps = []
    for _ in range(length):
        pool.send(rng.integers(pool.action.categories, size=pool.batch_shape))
        memory, step = one(memory, pool.recv())
        steps.append(jax.tree.map(np.asarray, step))
    return jax.tree.map(lambda *x: np.stack(x), *steps)


@pytest.mark.parametrize("limit", [500, 20])
def test_in_cart_pole_the_return_is_the_length(limit):
    steps = play("CartPole-v1", 120, num_envs=3, seeds=(1, 2), max_episode_steps=limit)
    assert ends(steps)[2].any() == (limit == 20)
    _, total = in_chunks(steps, 40)
    np.testing.assert_array_equal(total, sums(finished_games(steps)))
    np.testing.assert_array_equal(total[1], total[3])
    assert total[0].min() > 5


def test_a_game_of_catch_has_nine_steps():
    steps = play("Catch-v0", 64, num_envs=3, seeds=(1, 2))
    games, score_, square, length = in_chunks(steps, 16)[1]
    np.testing.assert_array_equal(games, [18, 18])
    np.testing.assert_array_equal(length, 9 * games)
    np.testing.assert_array_equal(square, games)
    assert np.all(np.abs(score_) < games)
