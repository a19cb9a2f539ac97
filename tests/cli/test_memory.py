"""What a run would take is told before it is taken, and what is too much is refused."""

import platform
import re
import resource
import subprocess
import sys
import types
from pathlib import Path

import jax
import pytest

from jaxsoft.agents.registry import ALGORITHMS
from jaxsoft.agents.settings import MOST
from jaxsoft.cli import assembly, memory, train
from jaxsoft.cli.config import complete
from jaxsoft.training.graph import GraphLoop
from jaxsoft.training.loop import initial

GB = 10**9


def of(algorithm="a2c", game="Catch-v0", **values):
    return complete({"game": game, "algorithm": algorithm, "steps": MOST} | values)


def nbytes(tree):
    return sum(jax.random.key_data(x).nbytes if is_key(x) else x.nbytes for x in leaves(tree))


leaves = jax.tree.leaves


def is_key(x):
    return jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)


@pytest.mark.parametrize("seeds", [(0,), (0, 3)])
@pytest.mark.parametrize("algorithm", ["a2c", "pcl", "natural_pg", "dqn"])
def test_arrays_are_told_exactly(algorithm, seeds):
    ring = {"capacity": 999, "learning_starts": 64} if algorithm == "dqn" else {}
    config = of(algorithm, seeds=seeds, **ring)
    told = memory.needs(config).device
    loop = assembly.loop(config)
    state = initial(loop.agent, config.seeds)
    assert told["parameters"] == nbytes(state.agent.params)
    assert told["optimiser"] == nbytes(state.agent.optimiser)
    assert told["rollout"] == nbytes(loop.collect(state, loop.start())[1])
    if algorithm == "dqn":
        assert told["replay"] == nbytes(state.agent.replay) > 124 * 8 * 50 * len(seeds)
        assert told["target network"] == told["parameters"]
        assert told["batch"] == 2 * 32 * 50 * 4 * len(seeds)


PAIRS = [
    (algorithm, game)
    for algorithm, entry in ALGORITHMS.items()
    for game in (["Pendulum-v1"] if entry.actions == "numbers" else ["Catch-v0", "Pong-v5"])
]


@pytest.mark.parametrize(("algorithm", "game"), PAIRS)
def test_every_run_is_told(algorithm, game):
    told = memory.needs(of(algorithm, game))
    assert all(x >= 0 for part in told for x in part.values())
    assert sum(map(sum, (part.values() for part in told))) > 0
    if game != "Pong-v5":
        memory.check(of(algorithm, game))


# Each was a hang, an abort or a traceback.
TOO_MUCH = [
    ("dqn", {"capacity": MOST}, "replay", "Lower --capacity."),
    ("dqn", {"capacity": MOST, "seeds": (0, 1)}, "replay", "Lower --capacity or the number of --s"),
    (
        "dqn",
        {"capacity": 10**9, "learning_starts": 10**9, "batch_size": 10**9 - 16},
        "activations of a batch",
        "Lower --batch-size or --hidden.",
    ),
    ("a2c", {"hidden": (10**9,)}, "parameters", "Lower --hidden."),
    ("a2c", {"hidden": (MOST, MOST)}, "parameters", "Lower --hidden."),
    ("a2c", {"rollout_length": 10**8}, "rollout", "Lower --num-envs or --rollout-length"),
    ("a2c", {"num_envs": 10**9, "rollout_length": 1}, "environments", "Lower --num-envs."),
    (
        "natural_pg",
        {"num_envs": 10**4, "rollout_length": 100, "solver": "gram"},
        "Gram matrix",
        "Lower --num-envs or --rollout-length.",
    ),
    (
        "soft_q_svgd",
        {"particles": 10**5},
        "particles",
        "Lower --particles or --proposals or --batch-size.",
    ),
]


@pytest.mark.parametrize(("algorithm", "given", "part", "advice"), TOO_MUCH)
def test_what_is_too_much_is_refused(algorithm, given, part, advice, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(memory, "free", lambda: 20 * GB)
    game = "Pendulum-v1" if ALGORITHMS[algorithm].actions == "numbers" else "Catch-v0"
    words = ["--game", game, "--algorithm", algorithm, "--steps", str(MOST)]
    for name, value in given.items():
        each = value if isinstance(value, tuple) else (value,)
        words += ["--" + name.replace("_", "-"), *map(str, each)]
    assert train.main([*words, "--out", str(tmp_path / "run")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.match(rf"error: This would take about \S+ [GTPE]B \(.*{part} [^)]*\) of memory", line)
    assert "of which 20 GB are free. " + advice in line
    assert [*tmp_path.iterdir()] == []


def test_a_run_that_just_fits_is_not_refused(monkeypatch):
    config = of("dqn", capacity=10_000)
    total = sum(x for part in memory.needs(config) for x in part.values())
    monkeypatch.setattr(memory, "free", lambda: total)
    memory.check(config)
    monkeypatch.setattr(memory, "free", lambda: total - 1)
    with pytest.raises(ValueError, match="This would take"):
        memory.check(config)
    monkeypatch.setattr(memory, "free", lambda: None)  # where nobody knows
    memory.check(config)


def test_checkpoints_may_hold_the_replay(monkeypatch):
    config = of("dqn", capacity=10**6)
    both = memory.needs(config, save_replay=True)
    assert both.host["checkpoint being written"] > both.device["replay"] > 10**6 * 200


def test_a_device_has_its_own_memory(monkeypatch):
    config = of("dqn", capacity=10**6)

    class Device:
        room = 10**6

        def memory_stats(self):
            return {"bytes_limit": self.room + 5, "bytes_in_use": 5}

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    with pytest.raises(ValueError, match=r"device's memory, of which 1 MB are free.*--capacity"):
        memory.check(config)
    Device.room = GB
    memory.check(config)
    monkeypatch.setattr(memory, "free", lambda: 1000)
    with pytest.raises(ValueError, match=r"environments .*of memory, of which 1 kB are free"):
        memory.check(config)


def test_games_to_play_are_refused_too(monkeypatch):
    monkeypatch.setattr(memory, "free", lambda: 20 * GB)
    memory.check_play(of(), 1000)
    with pytest.raises(ValueError, match=r"\(environments 9.\d+ TB\) .* Lower --games\."):
        memory.check_play(of(), 10**9)


def exhausted(*_):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9000 bytes.\n x")


@pytest.mark.parametrize("resumed", [False, True])
def test_memory_that_runs_out_is_one_line(resumed, monkeypatch, tmp_path, capsys):
    words = ["--game", "Catch-v0", "--algorithm", "a2c", "--steps", "400", "--hidden", "4"]
    out = tmp_path / "some" / "run"
    if resumed:
        assert train.main([*words, "--out", str(out), "--until", "200"]) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(GraphLoop, "run", exhausted)
    assert train.main([*words, "--out", str(out), "--resume"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: The memory ran out (RESOURCE_EXHAUSTED: Out of memory alloc")
    assert re.search(r"This takes about \S+ [kM]B \(.*\) in all\. Lower --", line)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before
    assert resumed or [*tmp_path.iterdir()] == []


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--hidden", "1e9"], ["--num-envs", "100000"]])
def test_memory_that_really_runs_out_is_one_line(words, tmp_path):
    """Before the first program and in it; JAX says nothing more as the process ends."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (12 * 10**9,) * 2)\n"
        "from jaxsoft.cli import memory, train\n"
        "memory.check = lambda *_, **__: None\n"
        "sys.exit(train.main(sys.argv[1:]))"
    )
    common = ["--game", "Catch-v0", "--algorithm", "a2c", "--steps", "2e9"]
    common += ["--rollout-length", "1000", "--out", str(tmp_path / "run")]
    command = [sys.executable, "-c", code, *common, *words]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert re.match(r"error: The memory ran out \(.*Out of memory.* Lower --", line)
    assert [*tmp_path.iterdir()] == []


def test_memory_that_runs_out_in_play():
    short = pytest.raises(ValueError, match=r"The memory ran out \(MemoryError\).*Lower --games")
    with short, memory.explained(of(), games=3):
        raise MemoryError
    other = pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL: another")
    with other, memory.explained(of()):
        raise jax.errors.JaxRuntimeError("INTERNAL: another")


def system(root: Path, **files: str) -> Path:
    """A file system that says these things; `__` is a slash."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = "MemTotal:  99 kB\nMemAvailable:    50 kB\n"


@pytest.mark.skipif(sys.platform != "linux", reason="files of Linux")
@pytest.mark.parametrize(
    ("cgroup", "files", "left"),
    [
        ("0::/\n", {}, 50 * 1024),
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/b/memory.current": "5"}, 50 * 1024),
        ("0::/a/b\n", {"a/b/memory.max": "900", "a/b/memory.current": "500"}, 400),
        (
            "0::/a/b\n",
            {
                "a/b/memory.max": "900",
                "a/b/memory.current": "500",
                "a/b/memory.stat": "anon 1\ninactive_file 100\n",
            },
            500,
        ),
        ("0::/a/b\n", {"a/memory.max": "900", "a/memory.current": "700"}, 200),
        # The host's path, within a container that has another root.
        ("0::/a/b\n", {"memory.max": "900", "memory.current": "800"}, 100),
        ("0::/\n", {"memory.max": "900", "memory.current": "1000"}, 0),
        (
            "9:cpu:/a\n4:memory:/a\n",
            {
                "memory/a/memory.limit_in_bytes": "900",
                "memory/a/memory.usage_in_bytes": "700",
                "memory/a/memory.stat": "inactive_file 7\ntotal_inactive_file 50\n",
            },
            250,
        ),
        ("4:memory:/a\n", {"memory/a/memory.limit_in_bytes": "9" * 18}, 50 * 1024),
    ],
)
def test_free_memory_is_that_of_the_tightest_limit(cgroup, files, left, tmp_path):
    system(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup=cgroup)
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert memory.free(tmp_path) == left


EMULATORS = """
import re, sys, envpool
def resident():
    status = open("/proc/self/status").read()
    return 1024 * int(re.search(r"VmRSS:\\s+(\\d+)", status)[1])
def pool(count):
    made = envpool.make(sys.argv[1], env_type="gymnasium", num_envs=count, **eval(sys.argv[3]))
    made.reset()
    return made
first = pool(2)
before, many = resident(), pool(int(sys.argv[2]))
print((resident() - before) / int(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="files of Linux")
@pytest.mark.parametrize(
    ("game", "count", "options", "estimate"),
    [
        ("Pong-v5", 64, {"stack_num": 1}, memory._ATARI),
        ("Catch-v0", 4096, {}, memory._GAME),
        ("CartPole-v1", 4096, {}, memory._GAME),
    ],
)
def test_an_emulator_takes_what_is_supposed(game, count, options, estimate):
    command = [sys.executable, "-c", EMULATORS, game, str(count), repr(options)]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert 0.7 * estimate < float(found) < 1.4 * estimate


@pytest.mark.skipif(sys.platform != "linux", reason="files of Linux")
def test_free_memory_here_and_where_nobody_says(tmp_path, monkeypatch):
    assert memory.free(tmp_path) is None
    assert 0 < (memory.free() or 0) < 2**50
    limits = resource.getrlimit(resource.RLIMIT_AS)
    system(tmp_path, proc__meminfo=MEMINFO, proc__self__status="VmSize:\t   1024 kB\n")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**20 + 7, limits[1]))
    assert memory.free(tmp_path) == 7


@pytest.mark.parametrize("there", [True, False])
def test_other_systems_are_asked_by_what_comes_with_orbax(there, tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    asked = types.SimpleNamespace(virtual_memory=lambda: types.SimpleNamespace(available=77))
    monkeypatch.setitem(sys.modules, "psutil", asked if there else None)
    assert memory.free(tmp_path) == (77 if there else None)


def test_sizes_for_people():
    sizes = [0, 999, 1000, 999_600, 1_234_567, 20 * GB, 123_456 * GB, 10**19]
    assert [*map(memory.shown, sizes)] == [
        *("0 bytes", "999 bytes", "1 kB", "1000 kB", "1.23 MB", "20 GB", "123 TB", "10 EB")
    ]
