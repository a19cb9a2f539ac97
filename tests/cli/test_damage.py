"""Files of a run that were damaged: one line that names the file, and never other numbers."""

import contextlib
import functools
import io
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jaxsoft
from experiments.engine import collected
from experiments.engine.runs import Cell
from jaxsoft.cli import assembly, compare, evaluate, plot, train
from jaxsoft.cli.options import parse
from jaxsoft.training import loop as loop_of
from jaxsoft.training.logs import read_csv

WORDS = "--game Catch-v0 --algorithm a2c --steps 48 --seeds 0 3 --num-envs 2 --rollout-length 4"
WORDS += " --hidden 4 --report-every 1 --checkpoint-seconds 0 --keep 100"
FILES = ("config.json", "run.json", "metrics.csv")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("damage") / "run"
    assert train.main([*WORDS.split(), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module", autouse=True)
def without_what_is_slow():
    """Compiling, playing and drawing, none of which reads a file of the run."""
    loops: dict[Any, Any] = {}
    states: dict[Any, Any] = {}
    build, begin = assembly.loop, loop_of.initial

    def loop(config, **options):
        if config not in loops:
            loops[config] = build(config, **options)
        return loops[config]

    def initial(agent, seeds):
        if id(agent) not in states:
            states[id(agent)] = agent, begin(agent, seeds)
        return states[id(agent)][1]

    def play(trained, games, **options):
        return (np.zeros((len(trained.config.seeds), games)),) * 2

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "loop", loop)
        patch.setattr(train, "initial", initial)
        patch.setattr(evaluate, "play", play)
        patch.setattr(plot, "draw", lambda rows, *args, **options: drawn.extend(rows[0]))
        yield


def bits(state: Any) -> list[bytes]:
    leaves = jax.tree.leaves(state._replace(key=jax.random.key_data(state.key)))
    return [np.asarray(x).tobytes() for x in leaves]


def resumed(out: Path) -> Any:
    """What a run continues from: it has no step left."""
    assert train.train(*parse(["--resume", "--out", str(out)])) == 0
    sessions = json.loads((out / "run.json").read_text())["sessions"]
    return [session["to_step"] for session in sessions]


def evaluated(out: Path) -> Any:
    trained = evaluate.load(out)
    return trained.step, trained.config, bits(trained.state)


def acting(out: Path) -> Any:
    policy = jaxsoft.load_policy(out)
    return policy.step, policy.config


drawn: list[plot.Panel] = []


def plotted(out: Path) -> Any:
    drawn.clear()
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            assert plot.main([str(out), "--out", str(out.parent / "curve.png")]) == 0
        except SystemExit as stop:
            raise ValueError(said.getvalue()) from stop
    [panel] = drawn
    return [
        None if x is None else np.asarray(x).tobytes() for line in panel.lines for x in line[1:]
    ]


def compared(out: Path) -> Any:
    table = compare.summarise({"a2c": out})
    return [list(column.cells) for column in table.columns]


def gathered(out: Path) -> Any:
    cell = Cell("Catch-v0", "a2c", (0, 3), 48, tuple(WORDS.split()), out)
    assert cell.finished
    found = collected.collect([cell])
    assert found is not None
    runs = found.runs.drop(columns="disk_bytes")
    return found.curves.to_json(), runs.to_json()


READERS = {
    "config.json": (resumed, evaluated, acting, compared, gathered, plotted),
    "run.json": (resumed, gathered),
    "metrics.csv": (resumed, compared, gathered, plotted),
}


def refusal(read: Any, out: Path) -> str:
    """What a reader says, where it refuses as the command line expects it to."""
    with pytest.raises((OSError, ValueError)) as caught:
        read(out)
    return str(caught.value)


def changed(out: Path, **changes: Any) -> str:
    values = json.loads((out / "config.json").read_text()) | changes
    return json.dumps({name: x for name, x in values.items() if x != "gone"})


ANY = {
    "empty": "",
    "cut": '{"game": "Catch-v0", "sess',
    "a list": "[]",
    "a number": "3",
    "null": "null",
    "not text": "\N{REPLACEMENT CHARACTER}\0",
    "nested": "[" * 100_000,
}
CONFIG: dict[str, dict[str, Any]] = {
    "a string": {"tau": "0.01"},
    "a count as a string": {"steps": "48"},
    "a count with a fraction": {"num_envs": 2.5},
    "a switch for a count": {"num_envs": True},
    "no game": {"game": "gone"},
    "no algorithm": {"algorithm": "gone"},
    "no steps": {"steps": "gone"},
    "no seeds": {"seeds": "gone"},
    "no tau": {"tau": "gone"},
    "no version": {"version": "gone"},
    "version": {"version": "3"},
    "another version": {"version": 2},
    "another game": {"game": "Snatch-v0"},
    "a game of another kind": {"game": ["Catch-v0"]},
    "another algorithm": {"algorithm": "ppo"},
    "an algorithm of another kind": {"algorithm": ["a2c"]},
    "an unknown key": {"warmth": 1},
    "a setting of another algorithm": {"capacity": 64},
    "null for a list": {"hidden": None},
    "a list of strings": {"hidden": ["4"]},
    "an empty list": {"seeds": []},
    "a number for a list": {"seeds": 0},
    "a seed twice": {"seeds": [0, 0]},
    "another choice": {"optimiser": "lion"},
    "out of range": {"discount": 1.5},
    "not a number": {"discount": math.nan},
    "another value": {"tau": 0.03},
    "other seeds": {"seeds": [0, 4]},
}


# A picture needs names alone, and what is resumed has the version of its checkpoints.
IGNORED = {
    plotted: CONFIG.keys() - {"a game of another kind", "an algorithm of another kind"},
    resumed: {"another version"},
    gathered: {"another version"},
}


@pytest.fixture
def out(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


@pytest.mark.parametrize("read", READERS["config.json"])
@pytest.mark.parametrize("damage", [*ANY, *CONFIG])
def test_a_damaged_config(read, damage, out):
    text = ANY[damage] if damage in ANY else changed(out, **CONFIG[damage])
    (out / "config.json").write_text(text)
    if damage in IGNORED.get(read, ()):
        read(out)
        return
    said = refusal(read, out)
    assert "config.json" in said or "cannot be resumed with other settings" in said
    assert str(out) in said


@pytest.mark.parametrize("read", READERS["run.json"])
@pytest.mark.parametrize(
    "text",
    [
        *ANY.values(),
        "{}",
        '{"sessions": []}',
        '{"sessions": {}}',
        '{"sessions": null}',
        '{"sessions": [{}]}',
        '{"sessions": [3]}',
        '{"sessions": [{"from_step": 0, "to_step": "48"}]}',
        "to_step",
        "seconds",
        "order",
    ],
)
def test_a_damaged_run(read, text, out):
    file = out / "run.json"
    values = json.loads(file.read_text())
    session = values["sessions"][0]
    if text == "to_step":
        session["to_step"] = 4_800  # which its checksum does not fit
    elif text == "seconds":
        session["seconds"] = math.inf
        del values["checksum"]
    elif text == "order":
        session["from_step"] = 50
        del values["checksum"]
    file.write_text(text if text in ANY.values() or text[0] in "{[" else json.dumps(values))
    said = refusal(read, out)
    assert str(file) in said
    assert "delete it" in said


def test_a_run_whose_sessions_were_deleted_is_gathered_again(out):
    (out / "run.json").unlink()
    assert resumed(out) == [48]
    gathered(out)


STEPS = ("nan", "inf", "", "-8", "8.5", "4_8", "1e999", " 48", "0x8")


def ending(text: str, step: str) -> str:
    """With one more line, of that step."""
    return text + text.splitlines()[-1].replace("48", step, 1) + "\n"


FIRST = "step,seed,episode_return,episodes,steps_per_second,episode_length"
METRICS: dict[str, Callable[[str], str]] = {
    "no header": lambda text: text.split("\n", 1)[1],
    "a header twice": lambda text: text + text,
    "a line cut": lambda text: text[: text.rindex(",")] + "\n",
    "a cell too many": lambda text: text[:-1] + ",1\n",
    "a column twice": lambda text: text.replace("seed", "step", 1),
    "a column without a name": lambda text: text.replace("episodes", "", 1),
    "no step": lambda text: text.replace("step", "stop", 1),
    "a word": lambda text: text + text.splitlines()[-1].replace("48", "x", 1) + "\n",
    **{f"step = {x!r}": functools.partial(ending, step=x) for x in STEPS},
    "seed = nan": lambda text: text.replace("\n8,3,", "\n8,nan,"),
    "games = inf": lambda text: text.replace(text.splitlines()[-1].split(",")[3], "inf"),
    "a cell too large": lambda text: text[:-1] + "e999\n",
}


@pytest.mark.parametrize("read", READERS["metrics.csv"])
@pytest.mark.parametrize("damage", METRICS)
def test_damaged_metrics(read, damage, out):
    file = out / "metrics.csv"
    text = file.read_text()
    file.write_text(METRICS[damage](text))
    assert file.read_text() != text
    said = refusal(read, out)
    assert str(file) in said


@pytest.mark.parametrize("read", [compared, gathered])
@pytest.mark.parametrize("text", ["", FIRST + "\n", "step,seed\n8,0\n", FIRST + "\n8,0,1,1,,9\n"])
def test_metrics_that_lack_what_is_needed(read, text, out):
    (out / "metrics.csv").write_text(text)
    assert str(out / "metrics.csv") in refusal(read, out)


@pytest.mark.parametrize("read", [compared, gathered])
@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [*lines, lines[-1]],
        lambda lines: [*lines[:3], *lines[1:]],
        lambda lines: [line.replace("16,", "96,", 1) for line in lines],
        lambda lines: [line.replace("8,3,", "8,4,", 1) for line in lines],
    ],
)
def test_rows_that_a_run_does_not_write(read, damage, out):
    lines = (out / "metrics.csv").read_text().splitlines()
    (out / "metrics.csv").write_text("".join(line + "\n" for line in damage(lines)))
    assert str(out / "metrics.csv") in refusal(read, out)


def test_a_run_whose_metrics_were_moved_away_begins_others(out):
    (out / "metrics.csv").unlink()
    resumed(out)
    assert read_csv(out / "metrics.csv") == {}


def test_a_comparison_needs_the_last_rows(out):
    text = (out / "metrics.csv").read_text()
    (out / "metrics.csv").write_text(text[: text.index("48,")])
    assert "expected those of [0, 3] up to 48" in refusal(compared, out)


def test_columns_that_are_not_there_to_plot(out):
    (out / "metrics.csv").write_text("step,seed\n8,0\n")
    assert "metrics.csv: given no columns" in refusal(plotted, out)


def test_a_refusal_is_a_line_of_the_command(out, capsys):
    (out / "config.json").write_text("{")
    words = [["--resume", "--out", str(out)], [str(out)], [str(out), "--out", "curve.png"]]
    for command, given_ in zip((train.main, evaluate.main, plot.main), words, strict=True):
        try:
            assert command(given_) == 2
        except SystemExit as stop:
            assert stop.code == 2  # noqa: PT017
        said = capsys.readouterr().err
        assert said.startswith(f"error: {out / 'config.json'} is damaged")
        assert said.count("\n") == 1


# At random


def places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of all that JSON values hold."""
    if not isinstance(tree, (dict, list)):
        return []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return [found for key, x in items for found in [(tree, key), *places(x)]]


def restructured(text: str, rng: random.Random) -> str:
    """JSON with a key fewer, or a value of another type."""
    values = json.loads(text)
    container, key = rng.choice(places(values))
    if rng.random() < 0.3:
        del container[key]
    else:
        others = [None, True, 0, -1, 7, 0.5, math.nan, "", "7", [], {}, ["x"], {"x": 1}, 10**30]
        container[key] = rng.choice([*others, str(container[key]), [container[key]]])
    return json.dumps(values)


def damaged(content: bytes, rng: random.Random, *, is_json: bool) -> bytes:
    kind = rng.choice(["cut", "flip", "letter", "insert", "remove", "twice", "restructure"])
    at = rng.randrange(len(content))
    if kind == "restructure" and is_json:
        return restructured(content.decode(), rng).encode()
    if kind == "cut":
        return content[:at]
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    letter = rng.choice(b'0123456789.,-+eEn_ \n\t"{}[]:ax').to_bytes()
    if kind == "insert":
        return content[:at] + letter + content[at:]
    if kind == "remove":
        return content[:at] + content[at + rng.choice([1, 1, 5]) :]
    if kind == "twice":
        lines = content.split(b"\n")
        lines.insert(rng.randrange(len(lines)), rng.choice(lines))
        return b"\n".join(lines)
    return content[:at] + letter + content[at + 1 :]


def plainly(content: bytes) -> tuple[list[str], list[list[float]]]:
    """Columns and rows of a CSV whose numbers JSON knows as numbers; what is torn is left out."""
    first, *lines = content.decode().split("\n")[:-1] or [""]

    def number(cell: str) -> float:
        if cell in ("", "nan", "inf", "-inf"):
            return float(cell or "nan")
        found = float(json.loads(cell))
        assert math.isfinite(found)
        return found

    columns = first.split(",") if first else []
    return columns, [[number(cell) for cell in line.split(",")] for line in lines]


@pytest.fixture(scope="module")
def expected(whole, tmp_path_factory):
    copy = shutil.copytree(whole, tmp_path_factory.mktemp("expected") / "run")
    return {read: read(copy) for read in {x for readers in READERS.values() for x in readers}}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_damage_at_random(name, whole, expected, tmp_path_factory):
    """Refused by a line that names the file, or it makes no difference."""
    out = shutil.copytree(whole, tmp_path_factory.mktemp("random") / "run")
    contents = {file: (whole / file).read_bytes() for file in FILES}
    counts = {"refused": 0, "the same": 0, "other numbers in plain sight": 0}
    content = contents[name]

    @settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**32))
    def check(seed: int) -> None:
        spoilt = damaged(content, random.Random(seed), is_json=name.endswith("json"))
        for read in READERS[name]:
            # What a reader may write to.
            shutil.rmtree(out / "tensorboard", ignore_errors=True)
            for file, x in contents.items():
                (out / file).write_bytes(spoilt if file == name else x)
            try:
                found = read(out)
            except (ValueError, OSError) as error:
                said = str(error)
            else:
                said = ""
            if said:
                assert name in said or "cannot be resumed with other settings" in said
                assert str(out) in said
                counts["refused"] += 1
                continue
            if name != "metrics.csv":
                assert found == expected[read]
                counts["the same"] += 1
                continue
            # A number may have become another one, or a line have lost its end.
            columns, rows = plainly(spoilt)
            if read is resumed:
                rows = [row for row in rows if row[columns.index("step")] <= 48]
            seen = read_csv(out / name)
            assert [*seen] == columns
            numbers = np.transpose([*seen.values()])
            np.testing.assert_array_equal(np.ravel(numbers), np.ravel(rows))
            same = spoilt.decode().split("\n")[:-1] == content.decode().split("\n")[:-1]
            counts["the same" if same else "other numbers in plain sight"] += 1
            if same and read is not resumed:
                assert found == expected[read]

    check()
    print(name, counts)
    assert counts["refused"] > 100
