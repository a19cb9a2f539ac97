"""The command line says what it does, and refuses what it cannot do by what to do instead."""

import argparse
import importlib
import json
import re
import shutil
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsoft.agents.registry import ALGORITHMS
from jaxsoft.agents.settings import count, flag, said, word
from jaxsoft.cli import compare, evaluate, main, options, train
from jaxsoft.cli import plot as plotting
from jaxsoft.cli.config import (
    Config,
    ConfigError,
    Runtime,
    complete,
    fields_of,
    from_json,
    look_up,
    to_json,
)
from jaxsoft.cli.options import parse

GAMES = {"vector": "Catch-v0", "atari": "Pong-v5", "images": "UTurn-v0"}
KINDS = pytest.mark.parametrize("game", GAMES.values(), ids=GAMES)
EACH = pytest.mark.parametrize("algorithm", ALGORITHMS)
IMAGES_ONLY = ("centred",)
# Nothing, unless it is given or the algorithm has a default of its own.
OPEN = ("activation", "layer_norm", "final_tau", "target_kl", "target_entropy", "tau_rate")
ATARI_ONLY = ("episodic_life", "reward_clip")
RUNTIME = {name: spec.metadata["images"] for name, spec in fields_of(Runtime).items()}

# Every setting that some algorithm has, and who has it.
HAVING: dict[str, list[str]] = {}
for _name, _entry in ALGORITHMS.items():
    for _setting in fields_of(_entry.settings):
        HAVING.setdefault(_setting, []).append(_name)
SPECIAL = [name for name, having in HAVING.items() if len(having) < len(ALGORITHMS)]


def game_for(algorithm, game="Catch-v0"):
    """One whose actions it can choose among."""
    return "Pendulum-v1" if ALGORITHMS[algorithm].actions == "numbers" else game


def of(algorithm, game="Catch-v0", **values):
    game = game_for(algorithm, game)
    return complete({"game": game, "algorithm": algorithm, "steps": 10**7} | values)


def flat(config):
    """Name -> value of every setting, those of the algorithm beside the others."""
    run = {name: getattr(config, name) for name in fields_of(Config)}
    own = {name: getattr(config.settings, name) for name in fields_of(config.entry.settings)}
    assert not run.keys() & own.keys()
    return run | own


def words(**values):
    """The flags of these settings."""
    out = []
    for name, value in values.items():
        if isinstance(value, bool):
            out.append(flag(name) if value else flag(name).replace("--", "--no-", 1))
        else:
            out += [flag(name), *map(str, value if isinstance(value, (tuple, list)) else [value])]
    return out


def parsed(out, *more, **values):
    start = {"algorithm": "a2c", "steps": 10**7, "out": out} | values
    start.setdefault("game", game_for(start["algorithm"]))
    return parse([*words(**start), *more])


def test_the_games_are_of_their_kinds():
    seen = {name: look_up(game) for name, game in GAMES.items()}
    assert [len(x.observation.shape) for x in seen.values()] == [2, 3, 3]
    assert [x.is_atari for x in seen.values()] == [False, True, False]


@KINDS
@EACH
def test_what_applies_has_a_value_and_nothing_else_has(algorithm, game):
    whole = of(algorithm, game)
    seen = look_up(whole.game)
    images, atari = len(seen.observation.shape) == 3, seen.is_atari
    entry = ALGORITHMS[algorithm]
    own = entry.defaults(images=images) | ({} if images else dict(entry.architecture))
    own |= {"layer_norm": entry.architecture.get("layer_norm")}
    own |= {"target_entropy": -1.0} if entry.tuned else {}
    absent = {"max_episode_steps"}  # EnvPool's own
    absent |= {name for name in OPEN if own.get(name) is None}
    absent |= set() if images else {*IMAGES_ONLY}
    absent |= set() if atari else {*ATARI_ONLY}
    assert {name for name, value in flat(whole).items() if value is None} == absent
    written = json.loads(json.dumps(to_json(whole)))
    assert written.keys() == flat(whole).keys() - absent
    assert from_json(written | {"version": 7}) == whole
    # What is complete stays as it is, given in any way.
    values = {name: tuple(x) if isinstance(x, list) else x for name, x in written.items()}
    assert complete({**flat(whole), "hidden": None} if images else flat(whole)) == whole
    del values["hidden"]
    assert parse(words(**values, out="out"))[0] == whole


@EACH
def test_defaults_are_of_settings_that_it_has(algorithm):
    entry = ALGORITHMS[algorithm]
    known = fields_of(entry.settings).keys()
    for images in (False, True):
        table = entry.images if images else entry.vectors
        assert table.keys() | entry.fixed.keys() <= known
        defaults = entry.defaults(images=images)
        assert defaults.keys() == known
        for name in known:
            usual = fields_of(entry.settings)[name].metadata["images" if images else "vectors"]
            assert defaults[name] == {**table, **entry.fixed}.get(name, usual)
        if images and entry.actions == "numbers":
            continue
        taken = flat(of(algorithm, GAMES["atari" if images else "vector"]))
        assert all(taken[name] == x for name, x in defaults.items() if x is not None)


def test_no_setting_has_two_meanings():
    """A flag is of one type and one range, whichever algorithms have it."""
    for name, having in HAVING.items():
        assert name not in fields_of(Config) | fields_of(Runtime)
        specs = [fields_of(ALGORITHMS[x].settings)[name] for x in having]
        assert all(spec.metadata == specs[0].metadata for spec in specs), name


def test_what_is_given_is_kept():
    given = {"seeds": (5, 2), "tau": 0.3, "hidden": (8,), "solver": "gram", "n": 3}
    whole, open_ = flat(of("natural_pg", **given)), flat(of("natural_pg"))
    assert whole == open_ | given


@EACH
def test_the_horizon_is_the_rollout_unless_it_has_a_default(algorithm):
    known = ALGORITHMS[algorithm].defaults(images=False)["n"]
    assert of(algorithm, rollout_length=12).settings.n == (known or 12)


@given(n=st.integers(0, 2**53), spaces=st.booleans())
def test_counts_are_read_however_they_are_written(n, spaces):
    for text in (f"{n}", f"{n:_}", f"{n}.0", f"{n:.20e}"):
        assert count(f" {text} " if spaces else text) == n


def test_counts_as_people_write_them():
    for text in ("10_000_000", "1e7", "10000000", "0.1e8"):
        assert parsed("out", steps=text)[0].steps == 10**7


@pytest.mark.parametrize("text", ["1.5", "many", "", "inf", "nan", "1e400", "1e-3"])
def test_what_is_no_count_is_refused(text, capsys):
    with pytest.raises(SystemExit) as caught:
        parsed("out", steps=text)
    assert caught.value.code == 2
    assert f"argument --steps: {text!r} is not a whole number" in capsys.readouterr().err


# Each is fine but for the flags named, and what to do is said.
REFUSED = [
    ("a2c", {"steps": 0}, r"--steps 0 is out of range\. Give a number from 1 to 2_147_483_647\."),
    ("a2c", {"steps": 2**31}, r"--steps 2_147_483_648 is out of range\. Give a number from 1 to"),
    ("a2c", {"num_envs": 0}, r"--num-envs 0 is out of range\. Give a number of at least 1\."),
    ("a2c", {"rollout_length": -1}, r"--rollout-length -1 is out of range\. Give"),
    ("a2c", {"n": 0}, r"--n 0 is out of range\. Give a number of at least 1"),
    ("a2c", {"max_episode_steps": 0}, r"--max-episode-steps 0 is out of range\. Give"),
    ("dqn", {"capacity": 0}, r"--capacity 0 is out of range\. Give"),
    ("dqn", {"batch_size": 0}, r"--batch-size 0 is out of range\. Give"),
    ("dqn", {"steps_per_gradient": 0}, r"--steps-per-gradient 0 is out of range\. Give"),
    ("dqn", {"learning_starts": 0}, r"--learning-starts 0 is out of range\. Give"),
    ("dqn", {"target_period": 0}, r"--target-period 0 is out of range\. Give"),
    ("a2c", {"hidden": (8, 0)}, r"--hidden 8 0 is out of range\. Give numbers of at least 1\."),
    ("a2c", {"discount": 1.5}, r"--discount 1\.5 is out of range\. Give a number from 0 to 1\."),
    ("a2c", {"discount": -0.5}, r"--discount -0\.5 is out of range\. Give"),
    ("a2c", {"discount": "nan"}, r"--discount nan is out of range\. Give"),
    ("a2c", {"tau": -1}, r"--tau -1 is out of range\. Give a number of at least 0\."),
    ("a2c", {"tau": "nan"}, r"--tau nan is out of range\. Give"),
    ("a2c", {"tau": "inf"}, r"--tau inf is out of range\. Give a finite number of at least 0\."),
    ("a2c", {"learning_rate": "inf"}, r"--learning-rate inf is out of range\. Give a finite"),
    ("a2c", {"learning_rate": -0.5}, r"--learning-rate -0\.5 is out of range\. Give"),
    ("a2c", {"max_gradient_norm": "nan"}, r"--max-gradient-norm nan .* from 0 to inf\."),
    ("a2c", {"max_gradient_norm": -1}, r"--max-gradient-norm -1 is out of range\. Give"),
    ("natural_pg", {"damping": -1}, r"--damping -1 is out of range\. Give"),
    ("a2c", {"value_coef": -1}, r"--value-coef -1 is out of range\. Give"),
    ("dqn", {"epsilon": 1.5}, r"--epsilon 1\.5 is out of range\. Give a number from 0 to 1\."),
    ("dqn", {"epsilon_share": 1.5}, r"--epsilon-share 1\.5 is out of range\. Give"),
    ("a2c", {"seeds": (1, 2, 1)}, r"--seeds 1 2 1 names a seed twice\. Give each once\."),
    ("a2c", {"seeds": (-1,)}, r"--seeds -1 is out of range\. Give numbers from 0 to 65_535\."),
    ("a2c", {"seeds": (0, 65536)}, r"--seeds 0 65536 is out of range\. Give numbers from 0 to"),
    (
        "a2c",
        {"steps": 63, "num_envs": 8, "rollout_length": 8},
        r"--steps 63 is less than one update, --num-envs 8 x --rollout-length 8\. Give .* 64\.",
    ),
    *(
        (name, {"tau": 0}, rf"--tau 0 does not go with --algorithm {name}: .*\. Give a positive")
        for name, entry in ALGORITHMS.items()
        if entry.soft
    ),
    ("soft_dqn_kl", {"tau": 0}, "or --algorithm dqn"),
    (
        "dqn",
        {"num_envs": 2, "rollout_length": 3, "steps_per_gradient": 4},
        r"--steps-per-gradient 4 does not divide the 6 .* --num-envs 2 x --rollout-length 3\. Chan",
    ),
    (
        "dqn",
        {"capacity": 500, "learning_starts": 501},
        r"--capacity 500 is less than --learning-starts 501\. .*\. Raise the capacity",
    ),
    (
        "dqn",
        {"steps": 500, "learning_starts": 501},
        r"--steps 500 is less than --learning-starts 501\. Nothing would be learned\. Change",
    ),
    (
        "dqn",
        {"steps": 511, "learning_starts": 500},
        r"--steps 511, 15 whole updates of 32, is less than --learning-starts 500\. Nothing",
    ),
    (
        "dqn",
        {"learning_starts": 64, "batch_size": 57},
        r"--batch-size 57 is more than the 56 windows of --n 1 steps that .* smaller one .*raise",
    ),
    (
        "dqn",
        {"capacity": 64, "learning_starts": 64, "batch_size": 1, "n": 8},
        r"--batch-size 1 is more than the 0 windows of --n 8 steps",
    ),
    (
        "dqn",
        {"capacity": 63, "learning_starts": 32, "rollout_length": 8, "batch_size": 1},
        r"--capacity 63 holds 7 steps of --num-envs 8, fewer than --rollout-length 8\. Raise",
    ),
    (
        "a2c",
        {"seeds": (65535,), "num_envs": 32768},
        r"--seeds 65535 with --num-envs 32_768 .* beyond 2_147_483_646\. Give smaller seeds, or",
    ),
    *(
        (
            algorithm,
            {name: value},
            rf"{flag(name)} {word(value)} is out of range\. Give .* to 2_147",
        )
        for algorithm, name, value in (
            ("dqn", "capacity", 10**18),
            ("dqn", "capacity", 10**12),
            ("dqn", "batch_size", 2**31),
            ("dqn", "target_period", 10**12),
            ("dqn", "steps_per_gradient", 10**12),
            ("a2c", "max_episode_steps", 2**31),
            ("a2c", "num_envs", 10**10),
            ("a2c", "rollout_length", 2**31),
            ("a2c", "n", 2**31),
        )
    ),
    (
        "a2c",
        {"n": 9, "rollout_length": 8},
        r"--n 9 is longer than --rollout-length 8\. .* give a smaller n",
    ),
]


@pytest.mark.parametrize(("algorithm", "given", "message"), REFUSED)
def test_what_does_not_fit_together_is_refused(algorithm, given, message, tmp_path):
    parsed(tmp_path, algorithm=algorithm)
    with pytest.raises(ConfigError, match="^" + message if message[0] == "-" else message):
        parsed(tmp_path, algorithm=algorithm, **given)


FIXED = [(algorithm, name) for algorithm, x in ALGORITHMS.items() for name in x.fixed]


@pytest.mark.parametrize(("algorithm", "name"), FIXED)
def test_a_setting_that_an_algorithm_fixes_is_refused(algorithm, name, tmp_path):
    entry = ALGORITHMS[algorithm]
    value = another(fields_of(entry.settings)[name], entry.fixed[name])
    message = f"{said(name, value)} does not go with --algorithm {algorithm}, for which it is "
    message += f"{word(entry.fixed[name])}. Leave it out, or choose another algorithm."
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        parsed(tmp_path, algorithm=algorithm, **{name: value})
    parsed(tmp_path, algorithm=algorithm, **{name: entry.fixed[name]})


# On the verge of those above.
ACCEPTED = [
    ("a2c", {"steps": 64, "num_envs": 8, "rollout_length": 8, "n": 8}),
    ("a2c", {"steps": 2**31 - 1, "seeds": (0, 65535), "discount": 1, "tau": 0}),
    ("a2c", {"discount": 0, "max_gradient_norm": "inf", "max_episode_steps": 1, "hidden": (1,)}),
    ("dqn", {"capacity": 500, "learning_starts": 500, "steps": 512, "epsilon": 0}),
    ("dqn", {"capacity": 500, "learning_starts": 496, "steps": 511, "rollout_length": 2}),
    ("dqn", {"learning_starts": 64, "batch_size": 56}),
    ("dqn", {"capacity": 64, "learning_starts": 64, "rollout_length": 8, "batch_size": 8, "n": 7}),
    ("dqn", {"target_period": 2**31 - 1, "batch_size": 1}),
    ("a2c", {"max_episode_steps": 2**31 - 1, "hidden": (2**31 - 1,)}),
    ("a2c", {"seeds": (65535,), "num_envs": 32767, "rollout_length": 1}),
    ("dqn", {"num_envs": 2, "rollout_length": 6, "epsilon_share": 1, "n": 3}),
    ("a2c", {"prior": "counting", "learning_rate": 0, "value_coef": 0}),
]


@pytest.mark.parametrize(("algorithm", "given"), ACCEPTED)
def test_what_fits_together_is_accepted(algorithm, given, tmp_path):
    whole = flat(parsed(tmp_path, algorithm=algorithm, **given)[0])
    for name, value in given.items():
        spec = (fields_of(Config) | fields_of(ALGORITHMS[algorithm].settings))[name]
        kind = spec.metadata["parser"].get("type", str)
        assert whole[name] == (value if isinstance(value, tuple) else kind(value))


def test_images_have_their_own_network_and_only_atari_has_lives(tmp_path):
    for game in (GAMES["atari"], GAMES["images"]):
        message = f"^--hidden 8 does not go with --game {game}, .* Nature CNN. Leave it out"
        with pytest.raises(ConfigError, match=message):
            parsed(tmp_path, game=game, hidden=(8,))
    for name in (*ATARI_ONLY, *IMAGES_ONLY):
        for kind, game in GAMES.items():
            for value in (False, True):
                if kind == "atari" or (kind == "images" and name in IMAGES_ONLY):
                    assert getattr(of("a2c", game, **{name: value}), name) is value
                    continue
                shown = flag(name) if value else flag(name).replace("--", "--no-")
                message = f"^{shown} does not go with --game {game}: only .* Leave it out"
                with pytest.raises(ConfigError, match=message):
                    parsed(tmp_path, game=game, **{name: value})


@pytest.mark.parametrize("name", SPECIAL)
def test_a_flag_of_other_algorithms_is_refused(name, tmp_path):
    having = HAVING[name]
    value = flat(of(having[-1]))[name]
    for algorithm in ALGORITHMS:
        # Those of the last are of rollouts that others need not have.
        size = {"num_envs": 8, "rollout_length": 4} if ALGORITHMS[algorithm].replays else {}
        if algorithm in having:
            assert (
                flat(parsed(tmp_path, algorithm=algorithm, **size | {name: value})[0])[name]
                == value
            )
            continue
        message = f"{said(name, value)} does not go with --algorithm {algorithm}: it belongs to "
        message += f"{', '.join(having)}. Leave it out."
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            parsed(tmp_path, algorithm=algorithm, **{name: value})


def test_a_setting_that_nothing_has_is_refused():
    with pytest.raises(
        ConfigError, match=r"--warmth 2 .*: there is no such setting\. Leave it out"
    ):
        of("a2c", warmth=2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"keep": 0}, r"--keep 0 is out of range\. Give a number of at least 1"),
        ({"until": 0}, r"--until 0 is out of range\. Give"),
        ({"report_every": 0}, r"--report-every 0 is out of range\. Give"),
        ({"checkpoint_steps": 0}, r"--checkpoint-steps 0 is out of range\. Give"),
        ({"env_threads": -1}, r"--env-threads -1 is out of range\. Give a number of at least 0"),
        (
            {"env_threads": 10**5},
            r"--env-threads 100_000 is out of range\. Give a number from 0 to",
        ),
        ({"env_threads": 2**31}, r"--env-threads 2_147_483_648 is out of range\. Give a number fr"),
        ({"keep": 2**31}, r"--keep 2_147_483_648 is out of range\. Give a number from 1 to 2_147"),
        ({"checkpoint_seconds": -1}, r"--checkpoint-seconds -1 is out of range\. Give"),
        ({"checkpoint_seconds": "nan"}, r"--checkpoint-seconds nan is out of range\. Give"),
    ],
)
def test_what_cannot_be_carried_out_is_refused(given, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        parsed(tmp_path, **given)


def test_runtime_of_a_command_line(tmp_path):
    _, runtime = parsed(tmp_path)
    assert runtime == Runtime(**RUNTIME | {"out": tmp_path})
    given: dict[str, Any] = {
        "env_threads": 0,
        "report_every": 1,
        "checkpoint_seconds": 0.0,
        "keep": 1,
    }
    given |= {"save_replay": True, "on_nan": "skip", "driver": "host", "resume": True}
    assert parsed(tmp_path, **given)[1] == Runtime(**RUNTIME | {"out": tmp_path} | given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--lerning-rate", "1"], "--lerning-rate: did you mean --learning-rate"),
        (["--learning_rate=1"], "--learning_rate=1: did you mean --learning-rate"),
        (["--seed", "1"], "--seed: did you mean --seeds"),
        (["--optimizer", "sgd"], "--optimizer: did you mean --optimiser?"),
        (["--qwxyz"], "unrecognized arguments: --qwxyz\n"),
        (["--num", "3"], "unrecognized arguments: --num 3"),  # flags are not abbreviated
        (["--algorithm", "ppo"], ", ".join(map(repr, ALGORITHMS))),
        (["--prior", "none"], "invalid choice: 'none'"),
        (["--tau", "warm"], "argument --tau: invalid float value: 'warm'"),
    ],
)
def test_unknown_words_suggest_known_ones(given, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        parsed(tmp_path, *given)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["game", "algorithm", "steps", "out"])
@pytest.mark.parametrize("resume", [False, True])
def test_what_is_missing_is_named(name, resume, tmp_path, capsys):
    given = {"game": "Catch-v0", "algorithm": "a2c", "steps": 100, "out": tmp_path / "run"}
    del given[name]
    with pytest.raises(SystemExit) as caught:
        parse([*words(**given), *["--resume"] * resume])
    assert caught.value.code == 2
    assert f"error: --{name} is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("game", "message"),
    [
        ("Ponk-v5", "Pong-v5"),
        ("pong", "Pong-v5"),
        ("Cartpole-v1", "CartPole-v1"),
        ("Cathc-v0", "Catch-v0"),
        ("qqqq", "Near ones: "),
        ("Pendulum-v1", "Name another game, or one of the algorithms sac"),
    ],
)
def test_games_that_cannot_be_are_refused(game, message, tmp_path, capsys):
    out = tmp_path / "run"
    given = words(game=game, algorithm="a2c", steps=1000, out=out)
    assert train.main(given) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --game {game} ")
    assert message in error
    assert not out.exists()


@pytest.fixture
def saved(tmp_path):
    """A folder that a run of natural_pg was begun in, and its settings."""
    whole = of("natural_pg", seeds=(4, 2))
    values = to_json(whole) | {"version": 1}
    (tmp_path / "config.json").write_text(json.dumps(values))
    return tmp_path, whole


def test_a_resumed_run_has_the_settings_of_its_folder(saved):
    out, whole = saved
    settings, runtime = parse(["--resume", "--out", str(out), "--keep", "7"])
    assert settings == whole
    assert runtime == Runtime(**RUNTIME | {"out": out, "resume": True, "keep": 7})
    # Saying the same again is no contradiction.
    given = {name: x for name, x in flat(whole).items() if x is not None}
    assert parse(["--resume", *words(out=out, **given)])[0] == whole
    # Without --resume the folder says nothing.
    assert parsed(out)[0] == of("a2c")


def another(spec, value):
    """A value of the same setting that is not this one."""
    choices = spec.metadata["parser"].get("choices")
    if choices:
        return next(x for x in choices if x != value)
    if spec.name == "game":
        return "CartPole-v1"
    if isinstance(value, tuple):
        return value[::-1] if len(set(value)) > 1 else (*value, 3)
    return True if "action" in spec.metadata["parser"] else (value or 0) + 1


@pytest.mark.parametrize(
    "name", [*fields_of(Config), *fields_of(ALGORITHMS["natural_pg"].settings)]
)
def test_a_resumed_run_takes_no_other_settings(name, saved):
    out, whole = saved
    spec = (fields_of(Config) | fields_of(whole.entry.settings))[name]
    has = flat(whole)[name]
    value = another(spec, has)
    with pytest.raises(ConfigError, match="Leave them out, or name another folder") as caught:
        parse(["--resume", *words(out=out, **{name: value})])
    [line] = re.findall(r"^  (.*: the run there has .+)$", str(caught.value), re.MULTILINE)
    shown = f"no {flag(name)}" if has is None else said(name, has)
    assert line == f"{said(name, value)}: the run there has {shown}"


def test_a_resumed_run_takes_no_flag_of_another_algorithm(saved):
    with pytest.raises(ConfigError, match=r"--epsilon 0\.5: the run there has no --epsilon"):
        parse(["--resume", "--out", str(saved[0]), "--epsilon", "0.5"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"momentum": 1, "warmth": 2}, r"unknown settings momentum, warmth: .*another folder"),
        ({"algorithm": "ppo"}, r"unknown algorithm ppo: .*another folder"),
    ],
)
def test_a_config_of_another_version_is_refused(change, message, saved):
    out, whole = saved
    (out / "config.json").write_text(json.dumps(to_json(whole) | change))
    with pytest.raises(ConfigError, match=message):
        parse(["--resume", "--out", str(out)])


def shown_help(monkeypatch, capsys, command, columns=100):
    """The parser of a command, and its help."""
    monkeypatch.setenv("COLUMNS", str(columns))
    seen = []
    parse_args = argparse.ArgumentParser.parse_args

    def spy(self, *args):
        seen.append(self)
        return parse_args(self, *args)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", spy)
    with pytest.raises(SystemExit) as caught:
        command(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    return seen[0], text


def flags_of(action):
    """Those of an option as the help has them."""
    if isinstance(action, argparse.BooleanOptionalAction):
        return [action.option_strings[0].replace("--", "--[no-]", 1)]
    return action.option_strings


def explained(text):
    """What the help says of each flag."""
    out, name = {}, None
    for line in text.splitlines():
        if begun := re.match(r"  (?:-h, )?(--\S+)(?: .*?)?(?:  +(.*))?$", line):
            name = begun[1].replace("[no-]", "")
            out[name] = begun[2] or ""
        elif name and line.startswith(" " * 4):
            out[name] += " " + line.strip()
        else:
            name = None
    return {name: " ".join(said.split()) for name, said in out.items()}


def default_in(said):
    found = re.search(r"\(default ([^)]*)\)", said)
    return found and found[1]


@pytest.mark.parametrize("columns", [60, 100, 200])
@pytest.mark.parametrize("command", [evaluate.main, compare.main, plotting.main, train.main])
def test_help_explains_every_flag(command, columns, monkeypatch, capsys):
    columns = min(columns, 100) if command is plotting.main else columns
    parser, text = shown_help(monkeypatch, capsys, command, columns)
    for action in parser._actions:
        assert action.help
        for name in flags_of(action) or [action.metavar]:
            assert re.search(rf"^  (-h, )?{re.escape(name)}[ ,\n]", text, re.MULTILINE), name
        if action.option_strings and action.default not in (None, False, argparse.SUPPRESS):
            value = action.default
            shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            assert default_in(explained(text)[action.option_strings[0]]) == shown


def test_help_of_the_command_names_its_commands(capsys):
    assert main.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert set(main.COMMANDS) == {"train", "evaluate", "compare", "plot"}
    for name, about in main.COMMANDS.items():
        assert re.search(rf"^  {name} +{about}$", text, re.MULTILINE)
    for line, error in ([], ""), (["trian"], "error: 'trian' is not a command."):
        assert main.main(line) == 2
        assert capsys.readouterr().err.strip() == f"{error}\n\n{text}".strip()


def test_a_command_whose_packages_are_missing_says_what_to_install(monkeypatch, capsys):
    def missing(name):
        raise ModuleNotFoundError(f"No module named 'flax' of {name}", name="flax")

    monkeypatch.setattr(importlib, "import_module", missing)
    assert main.main(["evaluate", "run"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.match(r"error: jaxsoft evaluate needs flax, .* pip install 'jaxsoft\[train\]'", line)


def section(text, title):
    """The lines of the help under a title."""
    [block] = re.findall(rf"^{re.escape(title)}:\n((?: +\S.*\n)+)", text, re.MULTILINE)
    return block


def own_defaults(text):
    """algorithm -> flag -> word, of the help's last part."""
    block = section(text, "defaults of some algorithms, where they differ from those above")
    rows = re.findall(r"^  (\w+) +((?:.|\n {20})*)", block, re.MULTILINE)
    assert len(rows) == len(re.findall(r"^  \w", block, re.MULTILINE)) > 0
    return {
        name: dict(each.split(" ", 1) for each in " ".join(listed.split()).split(", "))
        for name, listed in rows
    }


def test_help_gives_the_defaults_that_are_taken(monkeypatch, capsys):
    parser, text = shown_help(monkeypatch, capsys, train.main)
    shown = {name: default_in(x) for name, x in explained(text).items()}
    own = own_defaults(text)
    assert {*own} <= {*ALGORITHMS}
    for algorithm in ALGORITHMS:
        for images in (False, True):
            entry = ALGORITHMS[algorithm]
            if images and entry.actions == "numbers":
                continue
            taken = flat(of(algorithm, GAMES["atari" if images else "vector"]))
            if entry.tuned:
                assert "τ tuned to entropy −D" in entry.about
                del taken["target_entropy"]
            for name, value in taken.items():
                if value is None or name in ("game", "algorithm", "steps"):
                    continue
                given = own.get(algorithm, {}).get(flag(name), shown[flag(name)])
                given = given.split(" / ")[0 if images else -1]
                if given == "--rollout-length":
                    assert value == taken["rollout_length"]
                elif isinstance(value, bool):
                    assert value == (given == "yes")
                else:
                    read = vars(parser.parse_args([flag(name), *given.split()]))[name]
                    assert (tuple(read) if isinstance(read, list) else read) == value, name
        # Nothing is listed that is the same as everywhere.
        for name, given in own.get(algorithm, {}).items():
            assert given != shown[name]
    for name, value in RUNTIME.items():
        given = shown[flag(name)]
        if isinstance(value, bool) and name != "resume":
            assert given == ("yes" if value else "no")
        elif value not in (None, ..., False):
            assert type(value)(given) == value
    # What has no default has none on purpose, and says so where it is not asked for.
    assert {name for name, given in shown.items() if given is None} == {
        *("--game", "--algorithm", "--steps", "--out", "--video", "--resume", "--help"),
        *("--max-episode-steps", "--report-every", "--checkpoint-steps", "--until"),
        *map(flag, OPEN),
    }


def test_help_lists_the_algorithms_and_whose_each_setting_is(monkeypatch, capsys):
    _, text = shown_help(monkeypatch, capsys, train.main)
    listed = re.findall(r"^  (\S+) +(\S.*)$", section(text, "algorithms"), re.MULTILINE)
    assert listed == [(name, entry.about) for name, entry in ALGORITHMS.items()]
    found = {}
    for title in re.findall(r"^only ((?:.|\n {5}(?! ))*?):$", text, re.MULTILINE):
        for name in explained(section(text, f"only {title}")):
            found[name] = " ".join(title.split()).split(", ")
    assert found == {flag(name): HAVING[name] for name in SPECIAL}


@pytest.mark.parametrize(
    ("argv", "found", "expected"),
    [
        (".venv/bin/jaxsoft", None, ".venv/bin/jaxsoft"),
        ("/usr/bin/jaxsoft", "/usr/bin/jaxsoft", "jaxsoft"),
        ("somewhere/__main__.py", None, "jaxsoft"),
    ],
)
def test_a_command_is_named_as_a_shell_finds_it(monkeypatch, argv, found, expected):
    monkeypatch.setattr(sys, "argv", [argv])
    monkeypatch.setattr(shutil, "which", lambda _: found)
    assert options.called() == expected
