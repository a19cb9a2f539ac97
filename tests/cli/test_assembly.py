"""A loop is put together for the device that it will run on, whatever the process's own is."""

from types import SimpleNamespace
from typing import Any

import jax
import pytest

from jaxsoft.cli import assembly
from jaxsoft.cli.config import complete
from jaxsoft.training.graph import GraphLoop
from jaxsoft.training.host import HostLoop


def device(platform: str) -> Any:
    return SimpleNamespace(platform=platform)


def of(algorithm: str, game: str = "Catch-v0") -> Any:
    given = {"game": game, "algorithm": algorithm, "steps": 10**6}
    return complete(given | {"num_envs": 2, "seeds": (0, 1)})


def test_seeds_that_fill_a_cpu_learn_in_turn_there_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for algorithm, game, expected in (
        ("a2c", "Pong-v5", {"cpu": True, "gpu": False, "tpu": False}),
        ("a2c", "Catch-v0", dict.fromkeys(("cpu", "gpu", "tpu"), False)),
        ("dqn", "Pong-v5", dict.fromkeys(("cpu", "gpu", "tpu"), False)),
        ("natural_pg", "Pong-v5", dict.fromkeys(("cpu", "gpu", "tpu"), True)),
    ):
        config = of(algorithm, game)
        assert {x: assembly.in_turn(config, device(x)) for x in expected} == expected
        monkeypatch.setattr(jax, "default_backend", lambda: "tpu")  # which is of the process
        assert assembly.in_turn(config) == expected["cpu"]


@pytest.mark.parametrize(("platform", "kind"), [("gpu", GraphLoop), ("tpu", HostLoop)])
def test_the_loop_is_the_one_that_the_device_can_run(
    platform: str, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    loop = assembly.loop(of("a2c", "Pong-v5"), device=device(platform))
    assert isinstance(loop, kind)
    assert not loop.in_turn
