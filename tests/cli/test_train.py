"""Runs leave what they promise, end as they should, and continue from where they were."""

import contextlib
import itertools
import json
import os
import platform
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import envpool
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from PIL.GifImagePlugin import GifImageFile
from tensorboardX.proto.event_pb2 import SessionLog

import jaxsoft
from jaxsoft.agents.registry import ALGORITHMS
from jaxsoft.cli import assembly, compare, evaluate, plot, train
from jaxsoft.cli.config import from_json, look_up
from jaxsoft.training import provenance
from jaxsoft.training.checkpoints import Checkpoints
from jaxsoft.training.graph import GraphLoop
from jaxsoft.training.logs import read_csv
from jaxsoft.training.loop import initial
from jaxsoft.training.provenance import Sessions
from tests.support.tensorboard import events, scalars
from tests.support.trees import structure

SEEDS = (0, 3)
UPDATE = 8  # steps
SMALL = ["--game", "Catch-v0", "--num-envs", "2", "--rollout-length", "4", "--hidden", "4"]
RING = ["--capacity", "64", "--batch-size", "4", "--learning-starts", "16"]
# Each update gets a row and a checkpoint.
EACH = ["--report-every", "1", "--checkpoint-seconds", "0", "--keep", "100"]
A2C = [*SMALL, *["--algorithm", "a2c", "--steps", "50", "--seeds", "0", "3"], *EACH]  # 6 updates


def run(out, *words):
    return train.main([*words, "--out", str(out)])


def resume(out, *words):
    return run(out, "--resume", *words)


def steps_of(out, seeds=SEEDS):
    """The steps that every seed has rows of, each once and in order."""
    rows = read_csv(out / "metrics.csv")
    steps = [rows["step"][rows["seed"] == seed] for seed in seeds]
    assert sum(map(len, steps)) == len(rows["step"])
    for each in steps:
        np.testing.assert_array_equal(each, steps[0])
    assert (np.diff(steps[0]) > 0).all()
    return steps[0].astype(int).tolist()


def checkpoints_of(out):
    names = [path.name for path in (out / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdigit())


def config_of(out):
    values = json.loads((out / "config.json").read_text())
    version = values.pop("version")
    return from_json(values), values, version


def like_of(out):
    """(agent, state as a run of it has, opens its checkpoints)."""
    config, values, version = config_of(out)
    agent = assembly.agent(config)
    like = jax.eval_shape(lambda: initial(agent, config.seeds))
    folder = out / "checkpoints"
    return agent, like, lambda: Checkpoints(folder, config=values, version=version, write=False)


def saved(out, *steps, replay=False):
    """The states of these checkpoints."""
    agent, like, opened = like_of(out)
    like = like if replay else evaluate.forgotten(agent, like)
    with opened() as checkpoints:
        return [checkpoints.restore(like, step)[1] for step in steps]


def copied(state):
    def copy(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.array(jax.random.key_data(x) if is_key else x)

    return jax.tree.map(copy, state)


def assert_same(state, other):
    """Bit for bit."""
    state, other = copied(state), copied(other)
    assert structure(state) == structure(other)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())


def same_params(state, other):
    state, other = (jax.tree.leaves(copied(x.agent.params)) for x in (state, other))
    return all((x == y).all() for x, y in zip(state, other, strict=True))


def files(directory):
    """All there is, and when it was written."""
    return {
        path.relative_to(directory): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in directory.rglob("*")
        if path.is_file()
    }


@contextlib.contextmanager
def calls(act):
    """`act(number, state)` at the beginning of every call of the compiled program."""
    original, numbers = GraphLoop.run, itertools.count(1)

    def watched(self, state, actors, updates):
        act(next(numbers), state)
        return original(self, state, actors, updates)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GraphLoop, "run", watched)
        yield


def stop_in(call, number):
    """A signal while that call is computed."""
    return calls(lambda n, _: signal.raise_signal(number) if n == call else None)


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """Loops by configuration, so that a resumed run compiles nothing again."""
    return {}


@pytest.fixture
def recompiled_never(compiled):
    with kept(compiled):
        yield


@contextlib.contextmanager
def kept(compiled):
    original = assembly.loop

    def loop(config, *args, **options):
        key = (config, options.get("driver", "auto"))
        if key not in compiled:
            compiled[key] = original(config, *args, **options)
        return compiled[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "loop", loop)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    assert run(out, *A2C) == 0
    return out


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, compiled):
    """The same, but stopped in its third update. Where there is nothing, --resume begins."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    with kept(compiled), stop_in(3, signal.SIGINT):
        assert resume(out, *A2C) == 130
    return out


@pytest.fixture
def again(stopped, tmp_path, recompiled_never):
    """A copy of the stopped run, to resume."""
    return shutil.copytree(stopped, tmp_path / "again")


def test_what_a_run_leaves(finished):
    assert {path.name for path in finished.iterdir()} == {
        *("config.json", "run.json", "metrics.csv", "tensorboard", "checkpoints", "curve.png"),
    }
    steps = list(range(UPDATE, 6 * UPDATE + 1, UPDATE))  # 50 is no whole number of updates
    assert steps_of(finished) == steps
    assert checkpoints_of(finished) == steps
    rows = read_csv(finished / "metrics.csv")
    columns = list(rows)
    assert columns[:5] == ["step", "seed", "episode_return", "episodes", "steps_per_second"]
    assert {"episode_length", "loss", "entropy", "kl", "gradient_norm", "skipped"} <= {*columns}
    assert "updates" not in columns
    assert rows["seed"].tolist() == [*SEEDS] * 6
    assert (rows["steps_per_second"] > 0).all()
    # A game of Catch is 9 steps long and pays ±1. Each of 2 environments makes 24 steps; after an
    # end one is spent on the reset.
    assert rows["episodes"].sum() == 2 * 2 * (24 // 10)
    played = rows["episodes"] > 0
    assert (rows["episode_length"][played] == 9).all()
    assert (np.abs(rows["episode_return"][played]) <= 1).all()
    assert np.isnan(rows["episode_return"][~played]).all()
    values = json.loads((finished / "config.json").read_text())
    assert values.pop("version") == train.VERSION
    assert (values["algorithm"], values["steps"], values["seeds"]) == ("a2c", 50, [0, 3])
    assert {"capacity", "damping", "out", "keep"}.isdisjoint(values)
    with Image.open(finished / "curve.png") as image:
        image.load()
    [state] = saved(finished, steps[-1])
    assert state.updates == 6


def test_a_run_says_where_it_comes_from(finished):
    [session] = json.loads((finished / "run.json").read_text())["sessions"]
    assert (session["from_step"], session["to_step"]) == (0, 6 * UPDATE)
    assert session["command"].startswith("python ")
    assert (session["jax"], session["jaxsoft"]) == (jax.__version__, jaxsoft.__version__)
    assert session["device"] == jax.devices()[0].device_kind
    assert 0 < session["seconds"] < 600
    assert {"commit", "processor", "python", "platform", "began"} <= {*session}


def test_sessions_of_a_run(tmp_path):
    def sessions():
        held = json.loads(path.read_text())["sessions"]
        return [(session["from_step"], session["to_step"]) for session in held]

    path = tmp_path / "run.json"
    Sessions(path, 0).update(0)
    assert not path.exists()  # nothing was done yet
    first = Sessions(path, 0)
    first.update(10)
    first.update(30)
    assert sessions() == [(0, 30)]
    # Killed while it saved at 30: the newest checkpoint is of 20.
    Sessions(path, 20).update(50)
    assert sessions() == [(0, 20), (20, 50)]
    Sessions(path, 50).update(50)
    assert sessions() == [(0, 20), (20, 50)]
    Sessions(path, 0).update(10)
    assert sessions() == [(0, 10)]


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit(tmp_path, monkeypatch):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    source = tmp_path / "jaxsoft" / "training" / "provenance.py"
    monkeypatch.setattr(provenance, "__file__", str(source))
    source.parent.mkdir(parents=True)
    assert provenance.commit() is None
    source.touch()
    git("init")
    (tmp_path / "other.py").touch()
    git("add", "other.py")
    git("commit", "-m", "of another project, in whose folder it is installed")
    assert provenance.commit() is None
    git("add", ".")
    git("commit", "-m", "first")
    clean = provenance.commit()
    assert clean is not None
    assert re.fullmatch("[0-9a-f]{7,}", clean)
    (tmp_path / "experiments" / "results").mkdir(parents=True)
    (tmp_path / "experiments" / "results" / "new.csv").touch()
    assert provenance.commit() == clean
    source.write_text("changed")
    assert provenance.commit() == clean + "+"


def in_tensorboard(out):
    """(step, tag) -> value, as TensorBoard shows it of runs that were resumed."""
    shown: dict[tuple[int, str], float] = {}
    for event in events(out / "tensorboard"):
        if event.session_log.status == SessionLog.START:
            shown = {key: x for key, x in shown.items() if key[0] < event.step}
        shown |= {(step, tag): x for step, tag, x in scalars([event])}
    return shown


def in_csv(out):
    rows = read_csv(out / "metrics.csv")
    return {
        (step, f"seed_{seed:.0f}/{name}"): x
        for name, column in rows.items()
        if name not in ("step", "seed")
        for step, seed, x in zip(rows["step"], rows["seed"], column, strict=True)
        if not np.isnan(x)
    }


def test_tensorboard_has_what_the_csv_has(finished):
    shown, rows = in_tensorboard(finished), in_csv(finished)
    assert shown.keys() == rows.keys()
    assert shown == pytest.approx(rows)


def test_a_stopped_run_has_learned_what_another_has_by_then(finished, stopped, capsys):
    steps = [UPDATE, 2 * UPDATE, 3 * UPDATE]
    assert steps_of(stopped) == checkpoints_of(stopped) == steps
    for state, other in zip(saved(finished, *steps), saved(stopped, *steps), strict=True):
        assert_same(state, other)
    before, after = read_csv(stopped / "metrics.csv"), read_csv(finished / "metrics.csv")
    for name, column in before.items():
        if name != "steps_per_second":
            np.testing.assert_array_equal(column, after[name][: len(column)])


def test_a_resumed_run_begins_with_what_was_saved(again, capsys):
    states: dict[int, Any] = {}

    def keep(number, state):
        states.setdefault(number, copied(state))

    with calls(keep):
        assert resume(again, *EACH) == 0
    assert_same(states[1], saved(again, 3 * UPDATE)[0])
    assert len(states) == 3
    assert steps_of(again) == checkpoints_of(again) == [UPDATE * i for i in range(1, 7)]
    shown, rows = in_tensorboard(again), in_csv(again)
    assert shown.keys() == rows.keys()
    assert shown == pytest.approx(rows)
    # Another time there is nothing to do, and nothing is done.
    before = files(again)
    with calls(lambda number, state: pytest.fail("called")):
        assert resume(again, *EACH) == 0
    now = files(again)
    assert {path.parent.name for path in now.keys() - before.keys()} == {"tensorboard"}
    assert [path for path in before if now[path][0] != before[path][0]] == []
    assert in_tensorboard(again) == shown


def test_checkpoints_along_a_run_are_at_the_same_steps_after_a_kill(tmp_path):
    apart = ["--checkpoint-steps", "17", "--checkpoint-seconds", "1e9", "--keep", "100"]
    words = [*SMALL, "--algorithm", "a2c", "--steps", "80", "--report-every", "24", *apart]
    assert run(tmp_path / "whole", *words) == 0
    # 17 steps are two updates of 8; the first checkpoint is of before any.
    assert checkpoints_of(tmp_path / "whole") == [0, 16, 32, 48, 64, 80]
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for step in (48, 64, 80):
        shutil.rmtree(tmp_path / "killed" / "checkpoints" / str(step))
    assert resume(tmp_path / "killed", *apart) == 0
    assert checkpoints_of(tmp_path / "killed") == [0, 16, 32, 48, 64, 80]
    assert_same(*saved(tmp_path / "whole", 32), *saved(tmp_path / "killed", 32))
    assert steps_of(tmp_path / "killed", (0,))[-1] == 80


def test_a_run_can_leave_early_by_the_schedules_of_the_whole(finished, tmp_path, capsys):
    assert run(tmp_path, *A2C, "--until", "29") == 0  # in the fourth update
    assert checkpoints_of(tmp_path)[-1] == steps_of(tmp_path)[-1] == 3 * UPDATE
    assert_same(*(saved(out, 3 * UPDATE)[0] for out in (tmp_path, finished)))
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 50
    assert resume(tmp_path, "--until", "16") == 0  # which was long ago
    assert checkpoints_of(tmp_path)[-1] == 3 * UPDATE
    assert resume(tmp_path) == 0
    assert steps_of(tmp_path) == steps_of(finished)
    refused = (
        "--until 7 is less than one update, --num-envs 2 x --rollout-length 4. Give at least 8."
    )
    assert run(tmp_path / "new", *A2C, "--until", "7") == 2
    assert refused in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_kill_between_rows_and_checkpoint_loses_the_rows(again, capsys):
    """What was reported after the newest checkpoint is learned again, and reported once."""
    shutil.rmtree(again / "checkpoints" / str(3 * UPDATE))
    assert resume(again) == 0
    assert steps_of(again) == [UPDATE * i for i in range(1, 7)]
    shown, rows = in_tensorboard(again), in_csv(again)
    assert shown.keys() == rows.keys()
    assert shown == pytest.approx(rows)


def test_before_the_first_checkpoint_resuming_is_beginning(again, capsys):
    shutil.rmtree(again / "checkpoints")
    numbers = []
    with calls(lambda number, state: numbers.append(int(state.updates))):
        assert resume(again, *EACH) == 0
    assert numbers == list(range(6))
    assert steps_of(again) == checkpoints_of(again) == [UPDATE * i for i in range(1, 7)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resume", "--tau", "0.5"], "--tau 0.5: the run there has --tau 0.01"),
        (["--resume", "--algorithm", "dqn"], "--algorithm dqn: the run there has --algorithm a2c"),
        (["--resume", "--seeds", "0", "4"], "--seeds 0 4: the run there has --seeds 0 3"),
        (A2C, "holds a run already. Continue it by --resume, or name another folder"),
        (["--resume", "--keep", "0"], "--keep 0 is out of range"),
        (["--resume", "--video", "game.gif"], "EnvPool cannot draw Catch-v0"),
    ],
)
def test_a_refusal_touches_nothing(words, message, again, capsys):
    before = files(again)
    assert run(again, *words) == 2
    assert message in capsys.readouterr().err
    assert files(again) == before


def test_a_checkpoint_of_another_version_is_refused(again, monkeypatch, capsys):
    before = files(again)
    newer = train.VERSION + 1
    monkeypatch.setattr(train, "VERSION", newer)
    assert resume(again) == 2
    said = f"version: given {newer}, the checkpoint's is {newer - 1}"
    assert said in capsys.readouterr().err
    assert files(again) == before


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(again, capsys):
    damaged = again / "checkpoints" / "24"
    data = max((damaged / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    whole = bytearray(data.read_bytes())
    whole[len(whole) // 2] ^= 1
    data.write_bytes(whole)
    before = files(again)
    assert resume(again) == 2
    error = capsys.readouterr().err
    assert f"{damaged}, which cannot be read" in error
    assert "Delete it and run again, which continues from step 16" in error
    assert error.count("\n") == 1
    assert evaluate.main([str(again), "--games", "1"]) == 2
    assert "--step 16" in capsys.readouterr().err
    with pytest.raises(OSError, match="--step 16 or step=16"):
        jaxsoft.load_policy(again)
    assert files(again) == before
    assert evaluate.main([str(again), "--games", "1", "--step", "16"]) == 0
    shutil.rmtree(damaged)
    assert resume(again, *EACH) == 0
    assert steps_of(again) == checkpoints_of(again) == [UPDATE * i for i in range(1, 7)]


def test_a_replay_is_taken_up_or_filled_again(tmp_path, recompiled_never, capsys):
    words = [*SMALL, *RING, *["--algorithm", "soft_dqn_kl", "--steps", "80", "--seeds", "0", "3"]]
    out = tmp_path / "run"
    with stop_in(4, signal.SIGTERM):
        assert run(out, *words, *EACH, "--save-replay") == 143
    assert checkpoints_of(out) == [8, 16, 24, 32]
    held = saved(out, 32, replay=True)[0]
    assert (held.agent.replay.filled == 16).all()  # rows, of 2 environments

    states: dict[int, Any] = {}

    def keep(number, state):
        states.setdefault(number, copied(state))
        if number == 2:
            signal.raise_signal(signal.SIGTERM)

    # With its replay, whatever is to become of it; at once it learns on.
    with calls(keep):
        assert resume(out, *EACH) == 143
    assert_same(states[1], held)
    assert evaluate.load(out).step == 48
    states.clear()

    # Without, nothing is learned before it is filled.
    last = saved(out, 48)[0]
    with calls(lambda number, state: states.setdefault(number, copied(state))):
        assert resume(out, *EACH) == 0
    empty = states[1]
    assert_same(evaluate.forgotten(like_of(out)[0], empty), last)
    assert (empty.agent.replay.filled == 0).all()
    assert (empty.agent.steps == 48).all()
    assert checkpoints_of(out) == steps_of(out) == [8 * i for i in range(1, 11)]
    learned = [*saved(out, 24, 32, replay=True), *saved(out, *(8 * i for i in range(5, 11)))]
    changed = [not same_params(x, y) for x, y in itertools.pairwise(learned)]
    #         at 32, 40, 48; then with 8, 16, 24, 32 steps in the replay
    assert changed == [True, True, True, False, True, True, True]
    rows = read_csv(out / "metrics.csv")
    waiting = [8, 56]
    np.testing.assert_array_equal(np.isnan(rows["loss"]), np.isin(rows["step"], waiting))


def test_gradients_that_are_not_finite(tmp_path, recompiled_never, capsys):
    out = tmp_path / "run"
    absurd = ["--optimiser", "sgd", "--learning-rate", "1e38", "--max-gradient-norm", "inf"]
    words = [*SMALL, *["--algorithm", "a2c", "--steps", "48", "--seeds", "3"], *absurd, *EACH]
    assert run(out, *words) == 2
    error = capsys.readouterr().err
    assert "seed 3 had 1 gradients that were not finite before step 16" in error
    assert "--on-nan skip" in error
    [before] = saved(out, UPDATE)
    assert checkpoints_of(out) == [UPDATE]
    # Once more, all the same.
    assert resume(out, *EACH) == 2
    assert checkpoints_of(out) == [UPDATE]
    assert resume(out, *EACH, "--on-nan", "skip") == 0
    steps = [UPDATE * i for i in range(1, 7)]
    assert steps_of(out, seeds=[3]) == checkpoints_of(out) == steps
    for state in saved(out, *steps):
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(copied(state.agent)))
        assert_same(state.agent.params, before.agent.params)
    assert read_csv(out / "metrics.csv")["skipped"].tolist() == [0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("where", ["file", "file/below", "/proc/run"])
def test_a_folder_that_cannot_be(where, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run(tmp_path / where, *A2C) == 2
    error = capsys.readouterr().err
    assert "Choose a directory that can be written to" in error
    assert str(tmp_path / where) in error
    assert files(tmp_path).keys() == {Path("file")}


@pytest.mark.parametrize("there", ["nothing", "a file", "a file in the way"])
@pytest.mark.parametrize("failing", ["loop", "run", "start"])
def test_a_run_that_never_began_leaves_nothing(failing, there, tmp_path, capsys, monkeypatch):
    """Whatever refuses it, EnvPool's words or a program that cannot be compiled."""

    def refuse(*_, **__):
        raise ValueError("EnvPool: expected a game, got none. Try another.")

    out = tmp_path / "above" / "run"
    if there != "nothing":
        (out / "tensorboard").mkdir(parents=True)
        (out / "tensorboard" / "mine").touch()
        (out / "notes").write_text("mine")
    if there == "a file in the way":
        (out / "checkpoints").touch()
    before = sorted(tmp_path.rglob("*")), files(tmp_path)
    monkeypatch.setattr(*(assembly, "loop") if failing == "loop" else (GraphLoop, failing), refuse)
    assert run(out, *A2C) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert (sorted(tmp_path.rglob("*")), files(tmp_path)) == before


def test_what_began_stays(tmp_path, recompiled_never, capsys):
    def fail(number, _):
        if number == 3:
            raise ValueError("unplugged")

    with calls(fail):
        assert run(tmp_path / "run", *A2C) == 2
    assert "unplugged" in capsys.readouterr().err
    assert steps_of(tmp_path / "run") == [UPDATE, 2 * UPDATE]
    assert resume(tmp_path / "run", *EACH) == 0


def test_a_thread_trains_without_handlers(finished, tmp_path, recompiled_never):
    """Signals are the main thread's business."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(run, tmp_path / "run", *A2C).result() == 0
    assert steps_of(tmp_path / "run") == steps_of(finished)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.mark.parametrize("command", [train, evaluate, compare])
def test_an_envpool_that_is_not_there_is_named(command, finished, tmp_path, monkeypatch, capsys):
    look_up.cache_clear()
    monkeypatch.setitem(sys.modules, "envpool", None)
    words = ["--game", "Catch-v0", "--steps", "50", "--out", str(tmp_path / "run")]
    words += ["--algorithm", "a2c"] if command is train else []
    assert command.main([str(finished)] if command is evaluate else words) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: EnvPool is not installed: pip install 'jaxsoft[train]'.")
    assert [*tmp_path.iterdir()] == []


def check_full(again, stopped, fill, repair, capsys):
    """Nothing of before is lost, and once there is room the run continues."""
    fill()
    try:
        assert resume(again, *EACH) == 2
    finally:
        repair()
    error = capsys.readouterr().err
    for name, x in files(stopped / "checkpoints").items():
        assert (again / "checkpoints" / name).read_bytes() == x[0]
    last = checkpoints_of(again)[-1]
    saved(again, last)
    assert resume(again, *EACH) == 0
    assert steps_of(again) == [UPDATE * i for i in range(1, 7)]
    assert set(checkpoints_of(again)) >= {8, 16, 24, 48}
    return error


@pytest.mark.parametrize(("room", "where"), [(1200, "Checkpoints"), (50, "metrics.csv")])
def test_files_that_cannot_grow(room, where, again, stopped, capsys):
    limit = (again / "metrics.csv").stat().st_size + room
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    error = check_full(
        again,
        stopped,
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1])),
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits),
        capsys,
    )
    assert "File too large" in error
    assert where in error


@pytest.mark.parametrize("room", [0, 50_000])
def test_a_full_disk(room, disk, stopped, recompiled_never, capsys):
    out = shutil.copytree(stopped, disk / "run")

    def fill():
        free = os.statvfs(disk)
        (disk / "filler").write_bytes(b"\0" * (free.f_bavail * free.f_bsize - room))

    error = check_full(out, stopped, fill, (disk / "filler").unlink, capsys)
    assert "No space left on device" in error
    assert str(out) in error


def test_a_disk_that_cannot_be_written_to(disk, stopped, capsys):
    out = shutil.copytree(stopped, disk / "run")
    before = files(out)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert resume(out) == 2
    assert "expected a directory to write to" in capsys.readouterr().err
    assert run(disk / "other", *A2C) == 2
    assert "Choose a directory that can be written to" in capsys.readouterr().err
    assert files(out) == before


def test_a_second_signal_leaves_at_once(monkeypatch):
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with train._Signals() as signals:
        signal.raise_signal(signal.SIGTERM)
        assert (signals.received, left) == (signal.SIGTERM, [])
        signal.raise_signal(signal.SIGINT)
        assert left == [130]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def pairs(rows, name):
    """Two rows of both seeds as one: sums of games, means of all else by their weights."""
    by_row = rows[name].reshape(3, 2, 2)
    if name == "episodes":
        return by_row.sum(axis=1).ravel()
    if not name.startswith("episode_"):
        return by_row.mean(axis=1).ravel()
    games = rows["episodes"].reshape(3, 2, 2)
    sums = np.where(games > 0, by_row * games, 0).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return (sums / games.sum(axis=1)).ravel()


def test_the_host_gives_the_same_rows_and_rows_are_means(finished, tmp_path):
    """Half as many rows of a run stepped from the host, in a pool of one and one of one."""
    words = [*A2C, "--driver", "host", "--report-every", "17", "--checkpoint-seconds", "300"]
    assert run(tmp_path / "host", *words) == 0
    rows, host = (read_csv(out / "metrics.csv") for out in (finished, tmp_path / "host"))
    assert steps_of(tmp_path / "host") == [16, 32, 48]
    assert checkpoints_of(tmp_path / "host") == [48]
    assert list(host) == list(rows)
    for name in rows:
        if name not in ("step", "seed", "steps_per_second"):
            np.testing.assert_allclose(host[name], pairs(rows, name), rtol=2e-4, atol=1e-6)


def printed_rows(text):
    """The rows of a table, cell by cell."""
    rows = [re.split("[│┃]", line)[1:-1] for line in text.splitlines() if "│" in line]
    return [[cell.strip() for cell in row] for row in rows]


def test_evaluation(finished, tmp_path, capsys):
    file = tmp_path / "played.json"
    capsys.readouterr()
    assert evaluate.main([str(finished), "--games", "20", "--json", str(file)]) == 0
    text = capsys.readouterr().out
    assert "Catch-v0 a2c, step 48" in text
    played = json.loads(file.read_text())
    returns, lengths = (np.array(played[name]) for name in ("returns", "lengths"))
    assert played["step"] == 48
    assert returns.shape == lengths.shape == (2, 20)
    assert set(returns.ravel()) == {-1, 1}
    assert (lengths == 9).all()
    rows = printed_rows(text)
    assert [row[0] for row in rows] == ["0", "3", "all"]
    for row, x in zip(rows, (*returns, returns.ravel()), strict=True):
        figures = [x.size, x.mean(), x.std(ddof=1), np.median(x), x.min(), x.max(), 9]
        np.testing.assert_allclose([float(cell) for cell in row[1:]], figures, atol=5.1e-3)

    # Greedily, and with an older checkpoint, other games are played; without, the same.
    for words in (["--greedy"], ["--step", "8"], []):
        command = [str(finished), "--games", "20", "--json", str(file), *words]
        assert evaluate.main(command) == 0
        again = json.loads(file.read_text())
        assert again["step"] == (8 if "--step" in words else 48)
        assert (again["returns"] == played["returns"]) == (not words)

    trained = evaluate.load(finished)
    same, _ = evaluate.play(trained, 20)
    np.testing.assert_array_equal(same, returns)
    assert (evaluate.play(trained, 20, seed=7)[0] != returns).any()


def test_greedy_evaluation_plays_the_likeliest_actions(finished):
    """Against a game played here, with EnvPool alone."""
    trained = evaluate.load(finished)
    score, _ = evaluate.play(trained, 8, policy=trained.agent.greedy, seed=50)
    [state] = saved(finished, 48)
    network = assembly.network(config_of(finished)[0])
    for i, seed in enumerate(SEEDS):
        params = jax.tree.map(lambda x, i=i: x[i], state.agent.params)
        seeds = [(50 + seed) * 8 + j for j in range(8)]
        pool = envpool.make("Catch-v0", env_type="gymnasium", num_envs=8, seed=seeds)
        observation, _ = pool.reset()
        total = 0
        for _ in range(9):
            _, log_pi = network.apply(params, observation)
            observation, reward, *_ = pool.step(np.argmax(np.asarray(log_pi), axis=-1))
            total += reward
        np.testing.assert_array_equal(score[i], total)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--video", "game.gif"], "EnvPool cannot draw Catch-v0"),
        (["--video", "game.mp4"], "Name a file that ends in .gif"),
        (["--json", "/proc/played.json"], "Choose a directory that can be written to"),
    ],
)
def test_evaluation_says_what_it_cannot_do(words, message, finished, capsys):
    assert evaluate.main([str(finished), "--games", "1", *words]) == 2
    assert message in capsys.readouterr().err


def test_evaluation_of_what_is_no_run(tmp_path, stopped, capsys):
    for place in (tmp_path, tmp_path / "absent", stopped / "config.json"):
        assert evaluate.main([str(place)]) == 2
        assert str(place) in capsys.readouterr().err
    shutil.copy(stopped / "config.json", tmp_path)
    assert evaluate.main([str(tmp_path)]) == 2
    assert "has no checkpoint yet" in capsys.readouterr().err
    for name, value in (("games", "0"), ("seed", "-1")):
        with pytest.raises(SystemExit):
            evaluate.main([str(stopped), f"--{name}", value])
        assert f"--{name} {value} is out of range. Give" in capsys.readouterr().err
    assert evaluate.main([str(stopped), "--step", "7"]) == 2
    assert "expected one of the steps there: [8, 16, 24]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("video", "message"),
    [("game.gif", "EnvPool cannot draw Catch-v0"), ("game.mp4", "ends in .gif")],
)
def test_a_video_that_cannot_be_is_refused_before_training(video, message, tmp_path, capsys):
    assert run(tmp_path / "run", *A2C, "--video", str(tmp_path / video)) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_video_shows_a_whole_game(tmp_path, capsys):
    video = tmp_path / "videos" / "game.gif"
    words = "--game CartPole-v1 --algorithm a2c --steps 32 --num-envs 2 --rollout-length 4"
    assert run(tmp_path / "run", *words.split(), "--hidden", "4", "--video", str(video)) == 0
    found = re.search(r"game\.gif: a game of (\d+) steps, return (\d+)", capsys.readouterr().out)
    assert found is not None
    steps, score = map(int, found.groups())
    assert steps == score >= 8
    with Image.open(video) as image:
        assert isinstance(image, GifImageFile)
        assert image.size == (1200, 800)
        shown = 0
        for frame in range(image.n_frames):
            image.seek(frame)
            image.load()
            shown += image.info["duration"] / 60  # ms; frames that are the same are one
    assert image.n_frames > 3 * steps / 4
    assert shown == pytest.approx(steps, abs=steps / 10)
    # A game's return is its length here; what is played after its end does not count.
    scores, lengths = evaluate.play(evaluate.load(tmp_path / "run"), 10)
    np.testing.assert_array_equal(scores, lengths)
    assert len(np.unique(lengths)) > 3


@pytest.mark.slow
def test_a_comparison(tmp_path, capsys, recompiled_never):
    out = tmp_path / "both"
    words = ["--game", "Catch-v0", "--steps", "512", "--seeds", "0", "1", "--out", str(out)]
    with stop_in(2, signal.SIGINT):
        assert compare.main(words) == 130
    assert "The same jaxsoft compare continues" in capsys.readouterr().out
    assert not (out / "a2c").exists()
    with stop_in(2, signal.SIGINT):
        assert compare.main(words) == 130
    assert "The same jaxsoft compare continues" in capsys.readouterr().out
    assert not (out / "a2c").exists()
    assert compare.main(words) == 0
    text = capsys.readouterr().out
    rows = printed_rows(text)
    assert [row[0] for row in rows] == ["soft_q", "a2c"]
    for row in rows:
        name = row[0]
        score, _ = evaluate.play(evaluate.load(out / name), compare.GAMES)
        means = score.mean(axis=1)
        assert row[2] == f"{means.mean():.2f} ± {means.std(ddof=1):.2f}"
        data = read_csv(out / name / "metrics.csv")
        assert steps_of(out / name, (0, 1))[-1] == 512
        late = data["step"] > 0.9 * 512
        parts = [late & (data["seed"] == seed) & (data["episodes"] > 0) for seed in (0, 1)]
        reached = [
            np.average(data["episode_return"][x], weights=data["episodes"][x]) for x in parts
        ]
        assert row[1] == f"{np.mean(reached):.2f} ± {np.std(reached, ddof=1):.2f}"
        assert float(row[3].replace(",", "")) > 0
    assert "All preconditions hold" in text
    with Image.open(out / "curve.png") as image:
        image.load()
    # The same command resumes, which here is to say it again; another one does not.
    before = {name: (out / name / "metrics.csv").read_bytes() for name in ("soft_q", "a2c")}
    with calls(lambda number, state: pytest.fail("called")):
        assert compare.main(words) == 0
    assert printed_rows(capsys.readouterr().out) == rows
    assert {name: (out / name / "metrics.csv").read_bytes() for name in before} == before
    assert compare.main([*words, "--seeds", "1"]) == 2
    assert "--seeds 1: the run there has --seeds 0 1" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_trains_a_seed_alone_as_beside_another(algorithm, tmp_path):
    entry = ALGORITHMS[algorithm]
    words = [*SMALL, *(RING if entry.replays else []), "--algorithm", algorithm, *EACH]
    words += ["--game", "Pendulum-v1"] if entry.actions == "numbers" else []
    for name, seeds in (("both", ["0", "3"]), ("alone", ["3"])):
        assert run(tmp_path / name, *words, "--steps", "40", "--seeds", *seeds) == 0
    both, alone = (read_csv(tmp_path / name / "metrics.csv") for name in ("both", "alone"))
    assert len(steps_of(tmp_path / "both")) == len(steps_of(tmp_path / "alone", [3])) == 5
    assert np.isfinite(alone["loss"][2:]).all()
    assert (alone["gradient_norm"][2:] > 0).all()
    for name in alone:
        if name not in ("steps_per_second", "residual"):
            expected = both[name][both["seed"] == 3]
            np.testing.assert_allclose(alone[name], expected, rtol=1e-3, atol=1e-5, err_msg=name)


LONG = [*SMALL, *["--algorithm", "a2c", "--seeds", "0", "3", "--resume"], *EACH[:4], "--keep", "2"]


def start(out, steps):
    """A process that trains, its seeds' rows and checkpoints as frequent as can be."""
    command = [sys.executable, "-m", "jaxsoft.cli", "train", *LONG, "--steps", str(steps)]
    return subprocess.Popen(
        [*command, "--out", str(out)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_progress(process, out):
    """Until it has saved something new."""
    before = checkpoints_of(out)[-1:]
    for _ in range(6000):
        if checkpoints_of(out)[-1:] > before:
            return
        if process.poll() is not None:
            pytest.fail(process.stdout.read())
        time.sleep(0.02)
    pytest.fail("no progress in two minutes")


def newest(out):
    """The step of the newest checkpoint; all that have a number for a name can be read."""
    agent, like, opened = like_of(out)
    like = evaluate.forgotten(agent, like)
    with opened() as checkpoints:
        for step in (steps := checkpoints_of(out)):
            assert checkpoints.restore(like, step)[1].updates * UPDATE == step
    return steps[-1]


def check_killed(out):
    """The step of the newest checkpoint, at most the one being written behind the newest row."""
    step = newest(out)
    rows = read_csv(out / "metrics.csv")["step"]
    assert 0 <= rows.max() - step <= 2 * UPDATE
    return step


def test_signals(tmp_path, capsys):
    """Killed, terminated, and at last left alone."""
    out, reached = tmp_path / "run", 0
    for number in (signal.SIGKILL, signal.SIGTERM):
        with start(out, 8_000) as process:
            wait_for_progress(process, out)
            process.send_signal(number)
            text = process.stdout.read()
        with jax.enable_x64(False):  # as the process computed
            step = check_killed(out)
        assert step > reached
        reached = step
        if number == signal.SIGKILL:
            assert process.returncode == -number
            continue
        assert process.returncode == 128 + number, text
        assert f"--resume --out {out}" in text
        assert "Traceback" not in text
        # Nothing at all was lost.
        assert read_csv(out / "metrics.csv")["step"].max() == step
    with jax.enable_x64(False):
        assert resume(out) == 0
    assert steps_of(out)[-1] == checkpoints_of(out)[-1] == 8_000


def test_the_second_run_in_a_folder_is_refused(tmp_path, capsys):
    out = tmp_path / "run"
    with start(out, 10_000_000) as process:
        try:
            wait_for_progress(process, out)
            for words in (["--resume"], A2C):
                assert run(out, *words) == 2
                error = capsys.readouterr().err
                assert f"{out}, to which process {process.pid} on {platform.node()}" in error
                assert error.count("\n") == 1
            # What only reads may do so.
            with jax.enable_x64(False):
                assert evaluate.main([str(out), "--games", "1"]) == 0
            assert plot.main([str(out), "--out", str(tmp_path / "curve.png")]) == 0
        finally:
            process.kill()
    assert (out / "metrics.csv").read_text().count("step,seed") == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "compare"])
def test_of_many_starts_at_once_one_runs(command, tmp_path):
    words = ["--game", "Catch-v0", "--steps", "100_000_000", "--out", str(tmp_path / "out")]
    words += ["--algorithm", "a2c", "--resume"] if command == "train" else []
    racing = [
        subprocess.Popen(
            [sys.executable, "-m", "jaxsoft.cli", command, *words],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(20 if command == "train" else 4)
    ]
    try:
        for _ in range(3000):
            running = [process for process in racing if process.poll() is None]
            if len(running) == 1:
                break
            time.sleep(0.1)
        [one] = running
        for process in racing:
            if process is not one:
                said = process.communicate()[0]
                assert process.returncode == 2
                assert f"process {one.pid} on" in said
                assert "Traceback" not in said
        one.send_signal(signal.SIGTERM)
        said = one.communicate()[0]
        assert one.returncode == 143, said
        assert not list(tmp_path.rglob("lock"))
        [metrics] = tmp_path.rglob("metrics.csv")
        assert metrics.read_text().count("step,seed") <= 1
    finally:
        for process in racing:
            with process:
                process.kill()


@pytest.mark.slow
def test_fifty_kills(tmp_path):
    """At moments of all kinds: as it starts, compiles, reports, saves, deletes."""
    out, moments, reached, unfinished = tmp_path / "run", random.Random(0), 0, 0
    for _ in range(50):
        with start(out, 200_000) as process:
            if moments.random() < 0.2:
                time.sleep(moments.uniform(0, 6))
            else:
                wait_for_progress(process, out)
                time.sleep(moments.uniform(0, 0.5))
            process.kill()
        unfinished += any("." in path.name for path in (out / "checkpoints").glob("*"))
        with jax.enable_x64(False):
            if checkpoints_of(out):
                step = check_killed(out)
                assert step >= reached
                reached = step
    assert unfinished > 5
    assert 0 < reached < 200_000
    with jax.enable_x64(False):
        assert resume(out) == 0
    assert steps_of(out)[-1] == checkpoints_of(out)[-1] == 200_000
    # Each update up to the last kill once.
    rows = read_csv(out / "metrics.csv")
    assert steps_of(out)[: reached // UPDATE] == list(range(UPDATE, reached + 1, UPDATE))
    assert len(rows["step"]) == 2 * len(steps_of(out))
