"""The command line says what it does, and refuses what it cannot do by what to do instead."""

import argparse
import dataclasses
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsoft.cli import compare, evaluate, train
from jaxsoft.cli import plot as plotting
from jaxsoft.cli.config import Config, ConfigError, Runtime, complete, flag, from_json, to_json
from jaxsoft.cli.defaults import (
    BY_ALGORITHM,
    BY_ALGORITHM_VECTOR,
    NATURAL,
    ON_POLICY,
    REPLAY,
    defaults,
)
from jaxsoft.cli.options import parse

ALGORITHMS = ON_POLICY + REPLAY
VECTOR, ATARI, IMAGES = (False, False), (True, True), (True, False)
KINDS = pytest.mark.parametrize("kind", [VECTOR, ATARI, IMAGES], ids=["vector", "atari", "images"])
ATARI_ONLY, IMAGES_ONLY = ("episodic_life", "reward_clip"), ("centred",)


def of(algorithm, **values):
    return Config(**{"game": "Catch-v0", "algorithm": algorithm, "steps": 10**7} | values)


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
    start = {"game": "Catch-v0", "algorithm": "a2c", "steps": 10**7, "out": out}
    return parse([*words(**start | values), *more])


def applies(spec, algorithm, images=True, atari=True):
    only = spec.metadata["only"]
    fits = (images or spec.name not in IMAGES_ONLY) and (atari or spec.name not in ATARI_ONLY)
    return fits and (not only or algorithm in only)


@KINDS
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_applies_has_a_default_and_nothing_else_has(algorithm, kind):
    whole = complete(of(algorithm), *kind)
    for spec in dataclasses.fields(Config):
        # Where there is none, the time limit is EnvPool's own.
        known = applies(spec, algorithm, *kind) and spec.name != "max_episode_steps"
        assert (getattr(whole, spec.name) is not None) == known, spec.name
    assert complete(whole, *kind) == whole
    assert from_json(json.loads(json.dumps(to_json(whole)))) == whole


def test_defaults_are_of_known_settings_that_apply():
    by_name = {spec.name: spec for spec in dataclasses.fields(Config)}
    for algorithm in ALGORITHMS:
        for images in (False, True):
            own = BY_ALGORITHM.get(algorithm, {}) | BY_ALGORITHM_VECTOR.get(algorithm, {})
            assert all(applies(by_name[name], algorithm) for name in own)
            assert set(defaults(algorithm, images)) <= set(by_name)


def test_what_is_given_is_kept():
    given = {"seeds": (5, 2), "tau": 0.3, "hidden": (8,), "solver": "gram", "n": 3}
    whole = complete(of("natural_pg", **given), *VECTOR)
    assert {name: getattr(whole, name) for name in given} == given
    open_ = complete(of("natural_pg"), *VECTOR)
    others = [x.name for x in dataclasses.fields(Config) if x.name not in given]
    assert [getattr(whole, name) for name in others] == [getattr(open_, name) for name in others]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_horizon_is_the_rollout_unless_there_is_a_replay(algorithm):
    whole = complete(of(algorithm, rollout_length=12), *VECTOR)
    assert whole.n == (1 if algorithm in REPLAY else 12)


@given(n=st.integers(0, 2**53), spaces=st.booleans())
def test_counts_are_read_however_they_are_written(n, spaces):
    for text in (f"{n}", f"{n:_}", f"{n}.0", f"{n:.20e}"):
        assert parsed("out", steps=f" {text} " if spaces else text)[0].steps == n


def test_counts_as_people_write_them():
    for text in ("10_000_000", "1e7", "10000000", "0.1e8"):
        assert parsed("out", steps=text)[0].steps == 10**7


@pytest.mark.parametrize("text", ["1.5", "many", "", "inf", "nan", "1e400", "1e-3"])
def test_what_is_no_count_is_refused(text, capsys):
    with pytest.raises(SystemExit) as caught:
        parsed("out", steps=text)
    assert caught.value.code == 2
    assert f"argument --steps: {text!r} is not a whole number" in capsys.readouterr().err


# Each is fine but for the flags named; what to do is told, too.
REFUSED = [
    ("a2c", {"steps": 0}, r"--steps 0 is less than 1\. Give"),
    ("a2c", {"num_envs": 0}, r"--num-envs 0 is less than 1"),
    ("a2c", {"rollout_length": -1}, r"--rollout-length -1 is less than 1"),
    ("a2c", {"n": 0}, r"--n 0 is less than 1"),
    ("a2c", {"max_episode_steps": 0}, r"--max-episode-steps 0 is less than 1"),
    ("dqn", {"capacity": 0}, r"--capacity 0 is less than 1"),
    ("dqn", {"batch_size": 0}, r"--batch-size 0 is less than 1"),
    ("dqn", {"steps_per_gradient": 0}, r"--steps-per-gradient 0 is less than 1"),
    ("dqn", {"learning_starts": 0}, r"--learning-starts 0 is less than 1"),
    ("dqn", {"target_period": 0}, r"--target-period 0 is less than 1"),
    ("a2c", {"hidden": (8, 0)}, r"--hidden 8 0 has a layer of less than 1\. Give"),
    ("a2c", {"discount": 1.5}, r"--discount 1\.5 is outside \[0, 1\]\. Give"),
    ("a2c", {"discount": -0.5}, r"--discount -0\.5 is outside"),
    ("a2c", {"discount": "nan"}, r"--discount nan is outside"),
    ("a2c", {"tau": -1}, r"--tau -1\.0 is outside \[0, inf\)"),
    ("a2c", {"tau": "nan"}, r"--tau nan is outside"),
    ("a2c", {"learning_rate": "inf"}, r"--learning-rate inf is outside \[0, inf\)"),
    ("a2c", {"max_gradient_norm": "nan"}, r"--max-gradient-norm nan is outside \[0, inf\]"),
    ("a2c", {"learning_rate": -1}, r"--learning-rate -1\.0 is outside"),
    ("a2c", {"max_gradient_norm": -1}, r"--max-gradient-norm -1\.0 is outside"),
    ("natural_pg", {"damping": -1}, r"--damping -1\.0 is outside"),
    ("a2c", {"value_coef": -1}, r"--value-coef -1\.0 is outside"),
    ("dqn", {"epsilon": 1.5}, r"--epsilon 1\.5 is outside \[0, 1\]"),
    ("dqn", {"epsilon_share": 1.5}, r"--epsilon-share 1\.5 is outside \[0, 1\]"),
    ("a2c", {"seeds": (1, 2, 1)}, r"--seeds 1 2 1 names a seed twice\. Give each once"),
    ("a2c", {"seeds": (-1,)}, r"--seeds -1 leaves the range 0 … 65535"),
    ("a2c", {"seeds": (65536,)}, r"--seeds 65536 leaves the range"),
    (
        "a2c",
        {"steps": 63, "num_envs": 8, "rollout_length": 8},
        r"--steps 63 is less than one update, 8 environments x 8 steps\. Give at least 64\.",
    ),
    ("a2c", {"steps": 2**31}, r"--steps 2_147_483_648 is more than .* Give fewer"),
    *(
        (name, {"tau": 0}, rf"--tau 0 with --algorithm {name}: .* no soft policy\. Give")
        for name in (*NATURAL, "nstep_soft_q", "soft_dqn_kl", "soft_dqn_entropy")
    ),
    ("soft_dqn_kl", {"tau": 0}, "or --algorithm dqn"),
    ("dqn", {"tau": 0.1}, r"--tau 0\.1 with --algorithm dqn, .* Use --algorithm soft_dqn_kl"),
    ("dqn", {"prior": "counting"}, r"--prior counting with --algorithm dqn.* leave --prior out"),
    ("soft_dqn_kl", {"prior": "counting"}, "--prior counting with --algorithm soft_dqn_kl"),
    ("soft_dqn_entropy", {"prior": "uniform"}, "--prior uniform with --algorithm soft_dqn_entropy"),
    (
        "dqn",
        {"num_envs": 2, "rollout_length": 3, "steps_per_gradient": 4},
        r"--steps-per-gradient 4 does not divide the 6 steps .*\(2 environments x 3\)\. Change",
    ),
    (
        "dqn",
        {"capacity": 500, "learning_starts": 501},
        r"--capacity 500 is less than --learning-starts 501\. .* raise the capacity",
    ),
    (
        "dqn",
        {"steps": 500, "learning_starts": 501},
        r"--steps 500 is less than --learning-starts 501\. Nothing would be learned",
    ),
    (
        "a2c",
        {"n": 9, "rollout_length": 8},
        r"--n 9 is longer than --rollout-length 8\. .* give a smaller n",
    ),
    ("a2c", {"episodic_life": True}, "--episodic-life does not go with --game Catch-v0"),
    ("a2c", {"episodic_life": False}, "--episodic-life does not go with .* Leave it out"),
    ("a2c", {"reward_clip": False}, "--reward-clip does not go with --game Catch-v0"),
]


@pytest.mark.parametrize(("algorithm", "given", "message"), REFUSED)
def test_what_does_not_fit_together_is_refused(algorithm, given, message, tmp_path):
    complete(parsed(tmp_path, algorithm=algorithm)[0], *VECTOR)
    settings, _ = parsed(tmp_path, algorithm=algorithm, **given)
    with pytest.raises(ConfigError, match=message):
        complete(settings, *VECTOR)


# On the verge of those above.
ACCEPTED = [
    ("a2c", {"steps": 64, "num_envs": 8, "rollout_length": 8, "n": 8}),
    ("a2c", {"steps": 2**31 - 1, "seeds": (0, 65535), "discount": 1, "tau": 0}),
    ("a2c", {"discount": 0, "max_gradient_norm": "inf", "max_episode_steps": 1, "hidden": (1,)}),
    ("dqn", {"capacity": 500, "learning_starts": 500, "steps": 500, "epsilon": 0}),
    ("dqn", {"num_envs": 2, "rollout_length": 6, "epsilon_share": 1, "n": 3}),
    ("a2c", {"prior": "counting"}),
    ("soft_dqn_entropy", {"prior": "counting"}),
    ("soft_dqn_kl", {"prior": "uniform"}),
]


@pytest.mark.parametrize(("algorithm", "given"), ACCEPTED)
def test_what_fits_together_is_accepted(algorithm, given, tmp_path):
    whole = complete(parsed(tmp_path, algorithm=algorithm, **given)[0], *VECTOR)
    for name, value in given.items():
        spec = next(x for x in dataclasses.fields(Config) if x.name == name)
        kind = spec.metadata["parser"].get("type", str)
        assert getattr(whole, name) == (value if isinstance(value, tuple) else kind(value))


def test_images_have_their_own_network_and_only_atari_has_lives(tmp_path):
    for kind in (ATARI, IMAGES):
        with pytest.raises(ConfigError, match=r"--hidden 8 does not go with .* Nature CNN. Leave"):
            complete(parsed(tmp_path, hidden=(8,))[0], *kind)
    for name in ATARI_ONLY:
        assert getattr(complete(of("a2c", **{name: False}), *ATARI), name) is False
        with pytest.raises(ConfigError, match=f"{flag(name)} does not go with"):
            complete(of("a2c", **{name: False}), *IMAGES)
    for name in IMAGES_ONLY:
        assert getattr(complete(of("a2c", **{name: True}), *IMAGES), name) is True
        for value in (False, True):
            with pytest.raises(ConfigError, match=f"{flag(name)} does not go with.*of images"):
                complete(of("a2c", **{name: value}), *VECTOR)


SPECIAL = [spec for spec in dataclasses.fields(Config) if spec.metadata["only"]]


@pytest.mark.parametrize("spec", SPECIAL, ids=lambda spec: spec.name)
def test_a_flag_of_other_algorithms_is_refused(spec, tmp_path):
    only = spec.metadata["only"]
    value = defaults(only[-1], images=False)[spec.name]
    for algorithm in ALGORITHMS:
        settings, _ = parsed(tmp_path, algorithm=algorithm, **{spec.name: value})
        if algorithm in only:
            assert getattr(complete(settings, *VECTOR), spec.name) == value
            continue
        said = f"{flag(spec.name)} {value} does not go with --algorithm {algorithm}; it belongs to "
        with pytest.raises(ConfigError, match=re.escape(said + ", ".join(only)) + r"\. Leave it"):
            complete(settings, *VECTOR)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"keep": 0}, "--keep 0 is less than 1"),
        ({"report_every": 0}, "--report-every 0 is less than 1"),
        ({"env_threads": -1}, "--env-threads -1 is less than 0"),
        ({"checkpoint_seconds": -1}, r"--checkpoint-seconds -1\.0 is less than 0"),
        ({"checkpoint_seconds": "nan"}, "--checkpoint-seconds nan is less than 0"),
    ],
)
def test_what_cannot_be_carried_out_is_refused(given, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        parsed(tmp_path, **given)


def test_runtime_of_a_command_line(tmp_path):
    _, runtime = parsed(tmp_path)
    assert runtime == Runtime(out=tmp_path)
    given = {"env_threads": 0, "report_every": 1, "checkpoint_seconds": 0.0, "keep": 1}
    given |= {"save_replay": True, "on_nan": "skip", "driver": "host", "resume": True}
    assert parsed(tmp_path, **given)[1] == Runtime(out=tmp_path, **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--lerning-rate", "1"], "--lerning-rate: did you mean --learning-rate"),
        (["--learning_rate=1"], "--learning_rate=1: did you mean --learning-rate"),
        (["--seed", "1"], "--seed: did you mean --seeds"),
        (["--optimizer", "sgd"], "--optimizer: did you mean --optimiser?"),
        (["--qwxyz"], "unrecognized arguments: --qwxyz\n"),
        (["--num", "3"], "unrecognized arguments: --num 3"),  # flags are not abbreviated
        (["--algorithm", "ppo"], "'a2c', 'a2c_naive', 'soft_q'"),
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
        ("Pendulum-v1", "environment with discrete actions"),
    ],
)
def test_games_that_cannot_be_are_refused(game, message, tmp_path, capsys):
    out = tmp_path / "run"
    given = words(game=game, algorithm="a2c", steps=1000, out=out)
    assert train.main(given) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert game in error
    assert message in error
    assert not out.exists()


@pytest.fixture
def saved(tmp_path):
    """A folder that a run of natural_pg was begun in, and its settings."""
    whole = complete(of("natural_pg", seeds=(4, 2)), *VECTOR)
    values = to_json(whole) | {"version": 1}
    (tmp_path / "config.json").write_text(json.dumps(values))
    return tmp_path, whole


def test_a_resumed_run_has_the_settings_of_its_folder(saved):
    out, whole = saved
    settings, runtime = parse(["--resume", "--out", str(out), "--keep", "7"])
    assert settings == whole
    assert runtime == Runtime(out=out, resume=True, keep=7)
    # Saying the same again is no contradiction.
    given = {name: x for name, x in dataclasses.asdict(whole).items() if x is not None}
    assert parse(["--resume", *words(out=out, **given)])[0] == whole
    # Without --resume the folder says nothing.
    assert parsed(out)[0] == of("a2c")


def another(spec, value):
    choices = spec.metadata["parser"].get("choices")
    if choices:
        return next(x for x in choices if x != value)
    if spec.name == "game":
        return "CartPole-v1"
    if isinstance(value, tuple):
        return value[::-1] if len(set(value)) > 1 else (*value, 3)
    return True if "action" in spec.metadata["parser"] else (value or 0) + 1


@pytest.mark.parametrize("spec", dataclasses.fields(Config), ids=lambda spec: spec.name)
def test_a_resumed_run_takes_no_other_settings(spec, saved):
    out, whole = saved
    value = another(spec, getattr(whole, spec.name))
    with pytest.raises(ConfigError, match="Leave them out, or name another folder") as caught:
        parse(["--resume", *words(out=out, **{spec.name: value})])
    shown = "" if isinstance(value, bool) else "[^:]+"
    [line] = re.findall(r"^  (.*): the run there has .+$", str(caught.value), re.MULTILINE)
    assert re.match(rf"{flag(spec.name)} {shown}", line)


def test_a_config_of_another_version_is_refused(saved):
    out, whole = saved
    (out / "config.json").write_text(json.dumps(to_json(whole) | {"momentum": 1, "warmth": 2}))
    with pytest.raises(ConfigError, match=r"unknown settings momentum, warmth: .*another folder"):
        parse(["--resume", "--out", str(out)])


def shown_help(monkeypatch, capsys, main, columns=100):
    """The parser of a command, and its help."""
    monkeypatch.setenv("COLUMNS", str(columns))
    seen = []
    parse_args = argparse.ArgumentParser.parse_args

    def spy(self, *args):
        seen.append(self)
        return parse_args(self, *args)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", spy)
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    return seen[0], text


def explained(text):
    """What the help says of each flag."""
    out, name = {}, None
    for line in text.splitlines():
        if begun := re.match(r"  (--[\w-]+)(?:, --no-[\w-]+)?(?: .*?)?(?:  +(.*))?$", line):
            name = begun[1]
            out[name] = begun[2] or ""
        elif name and line.startswith(" " * 4):
            out[name] += " " + line.strip()
        else:
            name = None
    return {name: " ".join(said.split()) for name, said in out.items()}


def default_in(said):
    found = re.search(r"\(default:? ([^)]*)\)", said)
    return found and found[1]


@pytest.mark.parametrize("main", [evaluate.main, compare.main, plotting.main, train.main])
def test_help_explains_every_flag(main, monkeypatch, capsys):
    parser, text = shown_help(monkeypatch, capsys, main)
    for action in parser._actions:
        named = action.option_strings[:1] or [action.metavar]
        assert all(name in text for name in [*action.option_strings, *named])
        assert action.help, named
        if action.option_strings and action.default not in (None, False, argparse.SUPPRESS):
            value = action.default
            shown = " ".join(value) if isinstance(value, list) else str(value)
            assert default_in(explained(text)[named[0]]).split(" for ")[0] == shown


def own_defaults(text):
    """(of all games, but for images): algorithm -> flag -> word, from the help's last part."""
    tables = []
    for title in ("These algorithms have others:", "and, but for images:"):
        [block] = re.findall(rf"^.*{title}\n((?:  \S.*\n)*)", text, re.MULTILINE)
        rows = [line.split() for line in block.splitlines()]
        tables.append({name: dict(zip(x[::2], x[1::2], strict=True)) for name, *x in rows})
    return tables


def test_help_gives_the_defaults_that_are_taken(monkeypatch, capsys, tmp_path):
    parser, text = shown_help(monkeypatch, capsys, train.main)
    said = {name: default_in(x) for name, x in explained(text).items()}
    everywhere, but_for_images = own_defaults(text)
    specs = {spec.name: spec for spec in dataclasses.fields(Config)}
    for algorithm in ALGORITHMS:
        for images in (False, True):
            own = everywhere.get(algorithm, {})
            own = own | ({} if images else but_for_images.get(algorithm, {}))
            whole = complete(of(algorithm), images, images)
            for name in specs:
                value = getattr(whole, name)
                if value is None or name in ("game", "algorithm", "steps"):
                    continue
                of_kind = said[flag(name)].split("; with a replay ")
                of_kind = of_kind[-1 if algorithm in REPLAY else 0].split(" / ")
                word = own.get(flag(name), of_kind[0 if images else -1])
                if word == "the rollout":
                    assert value == whole.rollout_length
                elif isinstance(value, bool):
                    assert value == (word == "yes")
                else:
                    read = vars(parser.parse_args([flag(name), *word.split()]))[name]
                    assert (tuple(read) if isinstance(read, list) else read) == value, name
    for spec in dataclasses.fields(Runtime):
        word = said[flag(spec.name)]
        if isinstance(spec.default, bool):
            assert word == ("yes" if spec.default else "no")
        elif spec.default is not None:
            assert type(spec.default)(word) == spec.default
    # What has no default has none on purpose, and says so where it is not asked for.
    assert {name for name, word in said.items() if word is None} == {
        *("--game", "--algorithm", "--steps", "--out", "--video"),
        *("--max-episode-steps", "--report-every", "--checkpoint-steps", "--until"),
    }
    for name in ALGORITHMS:
        assert re.search(rf"^  {name} +\S", text, re.MULTILINE)
