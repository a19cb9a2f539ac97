"""EnvPool as understood by the library against EnvPool itself, driven by hand."""

import functools
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import envpool
import gymnasium
import jax
import numpy as np
import pytest
from envpool.registration import registry

from jaxsoft.agents.base import TimeStep
from jaxsoft.environments import About, EnvPool, HostEnvPool, Space, about, runs_in_graph
from jaxsoft.environments.autoreset import interpret
from tests.support.steps import ends

ATARI: dict[str, Any] = {"episodic_life": True, "noop_max": 1}


@pytest.fixture(autouse=True)
def _gymnasium_in_peace():
    """EnvPool driven by hand warns of bounds."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered.*")
        yield


def by_hand(game, actions, seeds, num_envs, **options):
    """EnvPool's own words for actions [T, S, N], the reset first: a dict of [T + 1, S, N, ...]."""
    env_seeds = [seed * num_envs + i for seed in seeds for i in range(num_envs)]
    env = envpool.make(
        game, env_type="gymnasium", num_envs=len(env_seeds), seed=env_seeds, **options
    )
    observation, info = env.reset()
    zero, no = np.zeros(len(env_seeds)), np.zeros(len(env_seeds), bool)
    words = [{"observation": observation, "reward": zero, "done": no, "truncated": no} | info]
    for action in actions:
        sent = action.reshape(len(env_seeds), *action.shape[2:])
        observation, reward, done, truncated, info = env.step(sent)
        words.append(
            {"observation": observation, "reward": reward, "done": done, "truncated": truncated}
            | info
        )
    shape = (len(words), len(seeds), num_envs)
    names = [name for name, x in words[0].items() if not isinstance(x, dict)]
    stacked = {name: np.stack([w[name] for w in words]) for name in names if name in words[1]}
    return {name: x.reshape(shape + x.shape[2:]) for name, x in stacked.items()}


def in_graph(pool, actions):
    """Steps [T + 1, S, N, ...], the first one first."""
    state, start = pool.reset()
    _, steps = jax.jit(lambda s, a: jax.lax.scan(pool.step, s, a))(state, actions)
    return jax.tree.map(lambda a, b: np.concatenate([np.asarray(a)[None], b]), start, steps)


def from_host(pool, actions):
    memory, step = pool.reset()
    one = jax.jit(interpret)
    steps = [step]
    for action in actions:
        pool.send(action)
        memory, step = one(memory, pool.recv())
        steps.append(step)
    return jax.tree.map(lambda *x: np.stack(x), *steps)


def actions_for(length, seeds, num_envs, num_actions):
    return np.random.default_rng(0).integers(num_actions, size=(length, len(seeds), num_envs))


DRIVERS = {"graph": (EnvPool, in_graph), "host": (HostEnvPool, from_host)}


LIMIT = 140
BREAKOUT: dict[str, Any] = {"num_envs": 2, "seeds": (3, 5), "max_episode_steps": LIMIT} | ATARI


@functools.cache
def breakout_by_hand():
    return by_hand("Breakout-v5", actions_for(270, (3, 5), 2, 4), **BREAKOUT)


@functools.cache
def breakout(driver):
    """(the library's steps, EnvPool's words with its own stack of four) of the same games."""
    pool, play = DRIVERS[driver]
    steps = play(pool("Breakout-v5", **BREAKOUT), actions_for(270, (3, 5), 2, 4))
    return steps, breakout_by_hand()


@pytest.mark.parametrize("driver", DRIVERS)
def test_frames_are_stacked_as_envpool_stacks_them(driver):
    steps, words = breakout(driver)
    assert words["observation"].shape[-3:] == (4, 84, 84)
    np.testing.assert_array_equal(steps.observation, words["observation"])
    assert steps.observation.dtype == np.uint8
    # Of the last two, lost lives keep the stack and whole games do not.
    assert np.sum((steps.weight == 0) & ~steps.first) > 4
    assert np.sum(steps.first[1:]) > 3


@pytest.mark.parametrize("driver", DRIVERS)
def test_ends_of_atari_games_are_told_apart(driver):
    """By facts that the library does not read: the lives, and a counter that games reset."""
    steps, words = breakout(driver)
    time, lives = words["elapsed_step"], words["lives"]
    transition = np.zeros(time.shape, bool)
    # The counter stands still on the step after a lost life.
    transition[1:] = time[1:] == time[:-1] + 1
    fewer = np.zeros(time.shape, bool)
    fewer[1:] = lives[1:] < lives[:-1]
    over, limit = words["terminated"] == 1, time == LIMIT
    game_over, life_lost, truncated = ends(steps)
    np.testing.assert_array_equal(steps.weight, transition)
    np.testing.assert_array_equal(steps.first, time == 0)
    np.testing.assert_array_equal(game_over, transition & over)
    np.testing.assert_array_equal(truncated, transition & limit & ~over)
    np.testing.assert_array_equal(life_lost, transition & fewer & ~over & ~limit)
    for kind in (game_over, truncated, life_lost):
        assert kind.sum() > 1
    ended = game_over | truncated | life_lost
    np.testing.assert_array_equal(steps.cut, ended | ~transition)
    np.testing.assert_array_equal(steps.weight[1:] == 0, ended[:-1])
    np.testing.assert_array_equal(steps.score, transition * words["reward"])


def test_a_time_limit_on_the_games_own_end_is_a_termination():
    actions = actions_for(250, (7,), 1, 4)
    words = by_hand("Breakout-v5", actions, (7,), 1, **ATARI)
    end = int(np.argmax(words["terminated"][:, 0, 0]))
    limit = int(words["elapsed_step"][end, 0, 0])
    assert limit > 50
    options = ATARI | {"max_episode_steps": limit}
    again = by_hand("Breakout-v5", actions[:end], (7,), 1, **options)
    assert again["truncated"][-1].all()
    assert not again["done"].any(where=again["terminated"] == 1)
    pool = HostEnvPool("Breakout-v5", num_envs=1, seeds=(7,), **options)
    steps = from_host(pool, actions[: end + 1])
    game_over, _, truncated = ends(steps)
    assert game_over[:, 0, 0].tolist() == [t == end for t in range(end + 2)]
    assert not truncated.any()
    assert steps.first[:, 0, 0].tolist() == [t in (0, end + 1) for t in range(end + 2)]


def test_rewards_are_clipped_and_scores_are_not():
    actions = actions_for(40, (0,), 2, 6)
    options: dict[str, Any] = {"reward_clip": True, "noop_max": 1}
    pool = HostEnvPool("SpaceInvaders-v5", num_envs=2, seeds=(0,), **options)
    steps = from_host(pool, actions)
    raw = by_hand("SpaceInvaders-v5", actions, (0,), 2, noop_max=1)["reward"]
    assert raw.max() >= 5
    np.testing.assert_array_equal(steps.score, raw)
    np.testing.assert_array_equal(steps.reward, np.sign(raw))
    assert steps.score.dtype == steps.reward.dtype == np.float32


@pytest.mark.parametrize("changes", [{"gray_scale": False}, {"stack_num": 2, "img_height": 42}])
def test_options_that_change_what_is_seen(changes):
    options = {"full_action_space": True, "noop_max": 1, "max_episode_steps": 9} | changes
    actions = actions_for(24, (0,), 2, 18)
    words = by_hand("Breakout-v5", actions, (0,), 2, **options)
    pool = HostEnvPool("Breakout-v5", num_envs=2, seeds=(0,), **options)
    assert pool.action == Space.discrete(18)
    assert pool.observation.shape == words["observation"].shape[3:]
    steps = from_host(pool, actions)
    np.testing.assert_array_equal(steps.observation, words["observation"])
    assert steps.first.sum() == 6


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("limit", [500, 15])
def test_cart_pole(driver, limit):
    seeds, num_envs = (3, 5), 2
    options = {"max_episode_steps": limit}
    actions = actions_for(90, seeds, num_envs, 2)
    pool, play = DRIVERS[driver]
    steps = play(pool("CartPole-v1", num_envs=num_envs, seeds=seeds, **options), actions)
    words = by_hand("CartPole-v1", actions, seeds, num_envs, **options)
    np.testing.assert_array_equal(steps.observation, words["observation"])
    np.testing.assert_array_equal(steps.reward, words["reward"])
    np.testing.assert_array_equal(steps.score, words["reward"])
    game_over, life_lost, truncated = ends(steps)
    assert not life_lost.any()
    np.testing.assert_array_equal(steps.first, words["elapsed_step"] == 0)
    np.testing.assert_array_equal(steps.weight == 0, steps.first)
    np.testing.assert_array_equal(truncated, words["elapsed_step"] == limit)
    # What is seen at an end is the end: the pole beyond 12 degrees, or the cart off its track.
    x, angle = steps.observation[..., 0], steps.observation[..., 2]
    fallen = (np.abs(x) > 2.4) | (np.abs(angle) > 12 * 2 * np.pi / 360)
    np.testing.assert_array_equal(game_over, fallen & ~truncated)
    assert truncated.any() == (limit == 15)
    assert game_over.any()


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    ("game", "acts", "size", "sees", "seen"),
    [
        ("Pendulum-v1", np.float32, 1, np.float32, 3),
        ("HalfCheetah-v5", np.float64, 6, np.float64, 17),
        ("AdroitHandRelocateSparse-v1", np.float32, 30, np.float64, 39),
    ],
)
def test_actions_and_observations_of_real_numbers(driver, game, acts, size, sees, seen, x64):
    """MuJoCo speaks float64, whatever the program computes in."""
    limit, seeds, num_envs = 9, (3, 5), 2
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (24, len(seeds), num_envs, size)).astype(np.float32)
    words = by_hand(game, actions.astype(acts), seeds, num_envs, max_episode_steps=limit)
    assert words["observation"].dtype == sees
    with jax.enable_x64(x64):
        dtype = np.dtype(sees if x64 else np.float32)
        make, play = DRIVERS[driver]
        pool = make(game, num_envs=num_envs, seeds=seeds, max_episode_steps=limit)
        assert (pool.action.shape, pool.action.dtype) == ((size,), acts if x64 else np.float32)
        assert (pool.observation.shape, pool.observation.dtype) == ((seen,), dtype)
        steps = play(pool, actions)
    assert steps.observation.dtype == dtype
    assert steps.reward.dtype == steps.score.dtype == np.float32
    np.testing.assert_array_equal(steps.observation, words["observation"].astype(dtype))
    np.testing.assert_array_equal(steps.reward, words["reward"].astype(np.float32))
    np.testing.assert_array_equal(steps.first, words["elapsed_step"] == 0)
    _, _, truncated = ends(steps)
    np.testing.assert_array_equal(truncated, words["elapsed_step"] == limit)
    np.testing.assert_array_equal(steps.discount, 1)
    assert truncated.sum() == 2 * len(seeds) * num_envs
    # Each action counts: the next games differ where they do.
    assert len(np.unique(steps.observation[-1].reshape(-1, seen), axis=0)) == 4


def test_bounds_are_the_games_own():
    action = about("Pendulum-v1").action
    np.testing.assert_array_equal([action.low, action.high], [[-2], [2]])
    assert action.categories == 0
    wide = about("Pendulum-v1").observation
    np.testing.assert_array_equal(wide.high, np.array([1, 1, 8], np.float32))
    np.testing.assert_array_equal(wide.low, -wide.high)


def start_of(pool):
    return np.asarray(pool.reset()[1].observation)


def test_environments_of_a_seed_are_its_own():
    make = functools.partial(HostEnvPool, "CartPole-v1", num_envs=3)
    beside = start_of(make(seeds=(3, 0, 5, 4)))
    assert len(np.unique(beside.reshape(12, 4), axis=0)) == 12
    for i, seed in enumerate((3, 0, 5, 4)):
        np.testing.assert_array_equal(beside[i : i + 1], start_of(make(seeds=(seed,))))
    for low, high in ((0, 1), (1, 3)):
        part = start_of(make(seeds=(3, 0, 5, 4), part=(low, high)))
        np.testing.assert_array_equal(part, beside[:, low:high])


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("game", ["FrozenLake-v1", "Taxi-v3"])
def test_categories_are_one_hot(driver, game):
    what = about(game)
    actions = actions_for(25, (1,), 3, what.action.categories)
    make, play = DRIVERS[driver]
    pool = make(game, num_envs=3, seeds=(1,))
    steps = play(pool, actions)
    numbers = by_hand(game, actions, (1,), 3)["observation"]
    assert what.observation == Space((what.one_hot,), np.dtype(np.float32), 0, 0, 1)
    assert steps.observation.shape[3:] == (what.one_hot,)
    assert steps.observation.dtype == np.float32
    np.testing.assert_array_equal(np.argmax(steps.observation, -1), numbers)
    np.testing.assert_array_equal(np.sum(steps.observation, -1), 1)
    np.testing.assert_array_equal(np.max(steps.observation, -1), 1)


@pytest.mark.parametrize("driver", DRIVERS)
def test_bits(driver):
    make, play = DRIVERS[driver]
    pool, actions = make("Play2048-v1", num_envs=2, seeds=(1,)), actions_for(9, (1,), 2, 4)
    assert pool.observation == Space((4, 4, 31), np.dtype(np.int8), 0, 0, 1)
    steps = play(pool, actions)
    assert steps.observation.dtype == np.int8
    seen = by_hand("Play2048-v1", actions, (1,), 2)["observation"]
    np.testing.assert_array_equal(steps.observation, seen)


def test_images_that_are_not_atari():
    """A game of bytes that are not stacked: every frame is what EnvPool gives."""
    game = "gfootball/academy_empty_goal_close-v1"
    what = about(game)
    assert (what.observation.shape, what.observation.dtype) == ((72, 96, 4), np.dtype(np.uint8))
    assert not what.is_atari
    pool = HostEnvPool(game, num_envs=1, seeds=(1,), num_threads=1)
    steps = from_host(pool, actions_for(3, (1,), 1, what.action.categories))
    assert steps.observation.shape == (4, 1, 1, 72, 96, 4)
    assert steps.observation.dtype == np.uint8


def test_what_there_is_to_know_of_games():
    def facts(game):
        what = about(game)
        seen = what.observation
        return (what.is_atari, what.action, what.first_action, seen.shape, seen.dtype, what.one_hot)

    bytes_, floats, one_of = np.dtype(np.uint8), np.dtype(np.float32), Space.discrete
    assert facts("Pong-v5") == (True, one_of(6), 0, (4, 84, 84), bytes_, 0)
    assert facts("Catch-v0") == (False, one_of(3), 0, (10, 5), floats, 0)
    assert facts("CartPole-v1") == (False, one_of(2), 0, (4,), floats, 0)
    assert facts("FrozenLake-v1") == (False, one_of(4), 0, (16,), floats, 16)
    assert isinstance(about("Catch-v0"), About)
    assert one_of(6) == Space((), np.dtype(np.int32), 6, 0, 5)


@pytest.mark.parametrize(
    ("game", "near"),
    [
        ("pong-v5", "Pong-v5"),
        ("Breakuot-v5", "Breakout-v5"),
        ("CartPole", "CartPole-v1"),
        ("ALE/Qbert-v5", "Qbert-v5"),
        ("###", "Catch-v0"),
    ],
)
def test_an_unknown_game_lists_near_ones(game, near):
    with pytest.raises(ValueError, match="Near ones: ") as error:
        about(game)
    assert repr(game) in str(error.value)
    assert near in str(error.value).split("Near ones: ")[1].rstrip(".").split(", ")


@pytest.mark.parametrize(
    ("game", "reason"),
    [
        ("Tetris-v0", "observations are an array or a category"),
        ("MiniGrid-Empty-5x5-v0", "observations are an array or a category"),
        ("Chess-v1", "one player"),
        ("Go9x9-v1", "one player"),
        ("VizdoomCustom-v1", "that EnvPool can make"),
    ],
)
def test_games_that_are_not_of_arrays_or_of_one_player_are_refused(game, reason):
    for look in (about, functools.partial(HostEnvPool, num_envs=2)):
        with pytest.raises(ValueError, match=rf"^environments: expected .*{reason}.*, got {game}"):
            look(game)


def check(game, what, actions, seen):
    """Spaces and what is said of them are those of EnvPool, in the precision that JAX has."""
    one_of = isinstance(seen, gymnasium.spaces.Discrete)
    assert what.observation.shape == ((seen.n,) if one_of else seen.shape), game
    expected = np.float32 if one_of else seen.dtype
    assert what.observation.dtype == jax.dtypes.canonicalize_dtype(expected), game
    assert what.observation.categories == 0, game
    assert what.one_hot == (seen.n if one_of else 0), game
    assert not one_of or seen.start == 0, game
    if isinstance(actions, gymnasium.spaces.Discrete):
        assert what.action == Space.discrete(actions.n), game
        assert what.first_action == actions.start, game
    else:
        assert what.action.shape == actions.shape, game
        assert what.action.dtype == jax.dtypes.canonicalize_dtype(actions.dtype), game
        assert what.action.categories == what.first_action == 0, game
        np.testing.assert_array_equal(what.action.low, actions.low, err_msg=game)
        np.testing.assert_array_equal(what.action.high, actions.high, err_msg=game)
    assert what.is_atari == ("atari" in registry.specs[game][0]), game


def check_every(games, monkeypatch):
    """Each is described, or refused in words, as its own spaces would have it."""
    specs: dict[str, Any] = {}
    make = envpool.make_spec
    monkeypatch.setattr(envpool, "make_spec", lambda g: specs.setdefault(g, make(g)))
    described = []
    for game in games:
        try:
            what = about(game)
        except ImportError as error:
            # Procgen draws with a library of the system's; EnvPool says how to install it.
            what, said, expected = None, str(error), "EnvPool Procgen requires"
        except ValueError as error:
            what, said, expected = None, str(error), "environments: expected"
            assert f"got {game}" in said
        assert what or said.startswith(expected), game
        if game not in specs:
            assert game == "VizdoomCustom-v1" or "procgen" in registry.specs[game][0], game
            continue
        spec = specs[game]
        actions, seen = spec.gymnasium_action_space, spec.gymnasium_observation_space
        spaces = gymnasium.spaces
        suits = (
            isinstance(actions, (spaces.Discrete, spaces.Box))
            and isinstance(seen, (spaces.Box, spaces.Discrete, spaces.MultiBinary))
            and spec.config.max_num_players == 1
        )
        assert (what is not None) == suits, game
        if what is not None:
            described.append(game)
            check(game, what, actions, seen)
    return described


def test_every_game_is_described_or_refused(monkeypatch):
    games = envpool.list_all_envs()
    # Of Atari games, which take longest to look up and are all alike, a few.
    atari = [game for game in games if "atari" in registry.specs[game][0]]
    assert len(check_every(sorted({*games} - {*atari} | {*atari[::12]}), monkeypatch)) > 50


def test_the_device_of_the_loop_decides_whether_games_run_in_it(monkeypatch):
    cpu, gpu, tpu = (SimpleNamespace(platform=x) for x in ("cpu", "gpu", "tpu"))
    linux = sys.platform == "linux"
    assert [runs_in_graph(x) for x in (cpu, gpu, tpu)] == [linux, linux, False]
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")  # which is of the process
    with jax.default_device(jax.devices("cpu")[0]):
        assert runs_in_graph() == linux


def test_a_step_and_an_answer_keep_their_shape():
    pool = HostEnvPool("Catch-v0", num_envs=3, seeds=(1, 2))
    _, step = pool.reset()
    assert all(x.shape[:2] == (2, 3) for x in step)
    pool.send(np.zeros((2, 3), int))
    assert all(x.shape[:2] == (2, 3) for x in pool.recv())
    assert isinstance(step, TimeStep)
    assert np.all(step.first & step.cut & (step.discount == 1))
    for nothing in (step.weight, step.over, step.score, step.reward):
        assert not np.any(nothing)


@pytest.mark.parametrize("version", [(0, 7, 2), (0, 9, 0)])
def test_a_jax_that_is_too_old_for_envpool_is_named(version, monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", version)
    monkeypatch.setattr(jax, "__version__", ".".join(map(str, version)))
    with pytest.raises(ValueError, match=r"expected JAX 0\.9\.1 or newer for the handlers"):
        EnvPool("Catch-v0", num_envs=1)
    HostEnvPool("Catch-v0", num_envs=1)  # has none


def test_handlers_that_do_not_fit_are_named(monkeypatch):
    """Of releases to come: JAX says so in words of its own."""

    def register(*_, **__):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: XLA FFI handler … is incompatible")

    monkeypatch.setattr(jax.ffi, "register_ffi_target", register)
    message = rf"expected another JAX for the handlers of EnvPool \S+, got JAX {jax.__version__}\. "
    with pytest.raises(ValueError, match=message + r"Bring both up to date.*--driver host"):
        EnvPool("Catch-v0", num_envs=1)


@pytest.mark.parametrize("pool", [EnvPool, HostEnvPool])
def test_environments_without_a_seed_left_are_refused(pool):
    refused = r"expected \(seed \+ 1\) \* num_envs up to 2_147_483_647.*got 65_535 and 32_768 env"
    with pytest.raises(ValueError, match=refused):
        pool("Catch-v0", num_envs=2**15, seeds=(0, 65_535))
    # Where only a part is made, its seeds are those of the whole.
    last = pool("Catch-v0", num_envs=2**15 - 1, seeds=(65_535,), part=(2**15 - 2, 2**15 - 1))
    assert last.batch_shape == (1, 1)
