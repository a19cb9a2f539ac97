"""Rollouts and scores: no sum crosses an auto-reset, and every kind of end bootstraps rightly."""

import functools

import jax
import numpy as np
import pytest

import jaxsoft
from jaxsoft import environments
from jaxsoft.environments import Step
from jaxsoft.training.collect import assemble, no_games, score
from tests.support import worlds


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
    discount = rollout.discount(worlds.GAMMA)
    delta = jaxsoft.td_errors(rollout.reward, discount, v[:-1], v[1:], log_ratio, worlds.TAU)
    return rollout.weight * jaxsoft.n_step_advantages(delta, discount, n, rollout.cut)


def in_doubles(rollout):
    return rollout._replace(reward=rollout.reward.astype(np.float64))


@pytest.mark.parametrize("n", [1, 3, 200])
def test_exact_values_are_consistent_along_every_rollout(n):
    given = in_doubles(rollout())
    kinds = (given.terminated, given.truncated, given.weight == 0, given.reset[1:])
    assert all(np.sum(kind) > 20 for kind in kinds)
    np.testing.assert_allclose(residuals(given, worlds.solve(), n), 0, atol=1e-12)


def wrong():
    start, action, steps = wander()
    right, no = rollout(), np.zeros_like(steps.first)
    return {
        "auto-resets counted": right._replace(weight=np.ones_like(right.weight)),
        "a lost life goes on": assemble(start, action, steps._replace(life_lost=no)),
        "a lost life is cut off": right._replace(
            terminated=steps.terminated, truncated=steps.truncated | steps.life_lost
        ),
        "a game goes on": right._replace(terminated=steps.life_lost),
        "a truncation is an end": right._replace(terminated=right.terminated | right.truncated),
        "a truncation goes on": right._replace(truncated=no),
        "only whole games reset": right._replace(weight=1.0 - steps.reset),
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
    got = assemble(start, action, steps)
    discount, cut = np.asarray(got.discount(0.75)), np.asarray(got.cut)
    # Of a type of its own, so that a learner may keep it.
    assert got.weight.dtype == np.float32
    assert not jax.typeof(got.weight).weak_type
    got = jax.tree.map(np.asarray, got)
    whole = jax.tree.map(lambda a, b: np.concatenate([a[None], b]), start, steps)
    np.testing.assert_array_equal(got.observation, whole.observation)
    np.testing.assert_array_equal(got.reset, whole.reset)
    np.testing.assert_array_equal(got.action, action)
    np.testing.assert_array_equal(got.reward, steps.reward)
    for t, s, n in np.ndindex(action.shape):
        begins = whole.terminated[t] | whole.truncated[t] | whole.life_lost[t]
        assert got.weight[t, s, n] == 1 - begins[s, n]
        no_value = steps.terminated[t, s, n] or steps.life_lost[t, s, n]
        assert got.terminated[t, s, n] == no_value
        assert got.truncated[t, s, n] == steps.truncated[t, s, n]
        assert cut[t, s, n] == (no_value or steps.truncated[t, s, n] or begins[s, n])
        assert discount[t, s, n] == (0 if no_value else 0.75)


def test_discount_is_of_the_rewards_dtype_and_may_differ_by_step():
    gamma = np.linspace(0.5, 1, rollout().action.size).reshape(rollout().action.shape)
    discount = rollout().discount(gamma)
    assert discount.dtype == rollout().reward.dtype == np.float32
    np.testing.assert_allclose(discount, np.where(rollout().terminated, 0, gamma), rtol=1e-7)


def finished_games(steps):
    """[(return, length)] of each seed's finished games, one step at a time."""
    length, seeds, envs = steps.score.shape
    games = [[] for _ in range(seeds)]
    for s, n in np.ndindex(seeds, envs):
        total, played = 0.0, 0
        for t in range(length):
            if not steps.first[t, s, n]:
                total += steps.score[t, s, n]
                played += 1
            if steps.terminated[t, s, n] or steps.truncated[t, s, n]:
                games[s].append((total, played))
                total, played = 0.0, 0
    return games


def sums(games):
    """What `Finished` sums, [4, S]."""
    each = [[len(g), *np.sum([(r, r**2, k) for r, k in g], axis=0)] for g in games]
    return np.transpose(each)


def in_chunks(steps, size):
    games, total = no_games(steps.first.shape[1:]), 0
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
    assert played == np.sum(~steps.first)
    earned = np.sum(total[1]) + np.sum(games.score)
    assert earned == np.sum(steps.score, where=~steps.first)


def test_a_lost_life_ends_no_game():
    *_, steps = wander(160, 4, (0, 2))
    no = np.zeros_like(steps.first)
    assert np.sum(steps.life_lost) > 20
    without = steps._replace(life_lost=no, reset=no)
    for a, b in zip(score(no_games((2, 4)), steps), score(no_games((2, 4)), without), strict=True):
        np.testing.assert_array_equal(np.stack(a), np.stack(b))


def test_the_score_is_raw():
    one = np.ones((1, 1, 1), np.float32)
    no = np.zeros((1, 1, 1), bool)
    step = Step(None, one, 30 * one, ~no, no, no, no, no)
    _, finished = score(no_games((1, 1)), step)
    np.testing.assert_array_equal(np.stack(finished)[:, 0], [1, 30, 900, 1])


def play(game, length, **options):
    """Steps [T, S, N] of random play."""
    pool = environments.HostEnvPool(game, **options)
    memory, _ = pool.reset()
    rng = np.random.default_rng(1)
    one = jax.jit(environments.interpret)
    steps = []
    for _ in range(length):
        pool.send(rng.integers(pool.num_actions, size=pool.batch_shape))
        memory, step = one(memory, pool.recv())
        steps.append(jax.tree.map(np.asarray, step))
    return jax.tree.map(lambda *x: np.stack(x), *steps)


@pytest.mark.parametrize("limit", [500, 20])
def test_in_cart_pole_the_return_is_the_length(limit):
    steps = play("CartPole-v1", 120, num_envs=3, seeds=(1, 2), max_episode_steps=limit)
    assert steps.truncated.any() == (limit == 20)
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
