"""What a run will occupy, told from shapes before anything is allocated, and what there is."""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import platform
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsoft.agents.base import TimeStep
from jaxsoft.agents.settings import SettingsError, flag
from jaxsoft.cli import assembly
from jaxsoft.cli.config import Config, look_up
from jaxsoft.environments.base import Space
from jaxsoft.training.graph import GraphLoop
from jaxsoft.training.loop import initial

__all__ = ["Needs", "check", "check_play", "explained", "free", "needs", "shown"]

_ATARI, _GAME = 2**20, 2**13
"""Bytes of one emulator as measured, beside its observations: of Atari, of Catch and CartPole."""

_NAMES = {"params": "parameters", "target_params": "target network"}
# What makes a part smaller.
_CAUSES = {
    "replay": ("capacity",),
    "batch": ("batch_size", "n"),
    "activations of a batch": ("batch_size", "hidden"),
    "activations": ("num_envs", "rollout_length", "hidden"),
    "rollout": ("num_envs", "rollout_length"),
    "Gram matrix": ("num_envs", "rollout_length"),
    "particles": ("particles", "proposals", "batch_size"),
    "environments": ("num_envs", "games"),
}
_EXHAUSTED = re.compile("RESOURCE_EXHAUSTED|[Oo]ut of memory")


class Needs(NamedTuple):
    """Name of a part -> bytes: what is on the device, and what is the host's in any case."""

    device: Mapping[str, int]
    host: Mapping[str, int]


def needs(config: Config, *, save_replay: bool = False) -> Needs:
    """What a run holds while it learns: its arrays by their shapes, and the rest a little low.

    Args:
      config: of the run.
      save_replay: whether its checkpoints have the replay.
    """
    agent, seeds = assembly.agent(config), len(config.seeds)
    settings: Any = config.settings
    about, replayed = look_up(config.game), hasattr(settings, "batch_size")
    state = jax.eval_shape(lambda: initial(agent, config.seeds))
    held = agent.forget(state.agent)
    fields = {name: _bytes(part) for name, part in state.agent._asdict().items()}
    device = Counter({_NAMES.get(name, name): size for name, size in fields.items()})
    device["gradients and updates"] = 2 * fields["params"] + fields["optimiser"]

    games = _Games((seeds, settings.num_envs), about.observation, about.action)
    loop = GraphLoop(games, agent, length=settings.rollout_length)
    device["rollout"] = _bytes(loop.rollout_like(state))
    batch = settings.batch_size if replayed else settings.rollout_length * settings.num_envs
    together = 1 if assembly.in_turn(config) else seeds
    seen = jax.ShapeDtypeStruct((batch, *about.observation.shape), about.observation.dtype)
    if replayed:
        device["batch"] = together * (settings.n + 1) * _bytes(seen)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), held.params)
    network = assembly.network(config).apply
    _, pull = jax.eval_shape(lambda p, x: jax.vjp(lambda p: network(p, x), p), params, seen)
    # What the backward pass wants of the forward one, of which XLA computes half again.
    name = "activations of a batch" if replayed else "activations"
    device[name] = together * max(_bytes(pull) - _bytes(params), 0) // 2
    if getattr(settings, "solver", None) == "gram":
        device["Gram matrix"] = together * 4 * batch**2
    if hasattr(settings, "particles"):
        # The layers of each, and the differences of all pairs.
        layers = max(settings.particles, settings.proposals) * 2 * sum(config.hidden)
        pairs = 2 * settings.particles**2 * math.prod(about.action.shape)
        device["particles"] = together * 4 * batch * (layers + pairs)
    return Needs(
        device,
        {
            "environments": _emulators(config, seeds * settings.num_envs),
            "checkpoint being written": _bytes(state.agent if save_replay else held),
        },
    )


def check(config: Config, *, save_replay: bool = False) -> None:
    """Refuses a run that there is no room for, by its parts and with what to make smaller."""
    what = needs(config, save_replay=save_replay)
    if jax.default_backend() == "cpu":
        what = Needs({}, Counter(what.device) + Counter(what.host))
    _refuse(what.device, _free_on_device(), config, "of the device's memory")
    _refuse(what.host, free(), config)


def check_play(config: Config, games: int) -> None:
    """The same for playing so many games of every seed."""
    _refuse(_played(config, games), free(), config)


@contextlib.contextmanager
def explained(config: Config, games: int | None = None) -> Iterator[None]:
    """Says what to make smaller where the memory runs out all the same, in training or in play."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not isinstance(error, MemoryError) and not _EXHAUSTED.search(said):
            raise
        _end_quietly()
        sizes = _played(config, games) if games else sum(map(Counter, needs(config)), Counter())
        raise SettingsError(
            f"The memory ran out ({said.rstrip('.')}). This takes about {_listed(sizes)} in all. "
            f"{_advice(sizes, config)}"
        ) from error


@functools.cache
def _end_quietly() -> None:
    """JAX waits for its programs when the process ends, and would say once more that one failed."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not _EXHAUSTED.search(str(unraisable.exc_value)):
            before(unraisable)

    sys.unraisablehook = hook


def free(root: Path = Path("/")) -> int | None:
    """Bytes of memory that this process may still take; `None` where nobody says.

    Args:
      root: of the file system that says it.
    """
    found = [_available(root), *_cgroups(root), _address_space(root)]
    known = [max(x, 0) for x in found if x is not None]
    return min(known, default=None)


def shown(size: int) -> str:
    """Bytes in human units."""
    power = min(max(len(str(size)) - 1, 0) // 3, 6)
    number = size / 1000**power
    digits = f"{number:.0f}" if number >= 100 else f"{number:.3g}"
    return f"{digits} {('bytes', 'kB', 'MB', 'GB', 'TB', 'PB', 'EB')[power]}"


@dataclass
class _Games:
    """Environments that are nothing but shapes."""

    batch_shape: tuple[int, int]
    observation: Space
    action: Space

    def reset(self) -> tuple[None, TimeStep]:
        def each(dtype: Any, shape: tuple[int, ...] = ()) -> Any:
            return jnp.zeros(self.batch_shape + shape, dtype)

        number, truth = each(jnp.float32), each(jnp.bool_)
        observation = each(self.observation.dtype, self.observation.shape)
        return None, TimeStep(observation, number, number, truth, number, truth, number, truth)

    def step(self, state: None, action: Any) -> tuple[None, TimeStep]:
        del state, action
        return self.reset()


def _played(config: Config, games: int) -> dict[str, int]:
    count = len(config.seeds) * games
    observation = look_up(config.game).observation
    seen = count * math.prod(observation.shape) * observation.dtype.itemsize
    return {"environments": _emulators(config, count) + seen}


def _emulators(config: Config, count: int) -> int:
    about = look_up(config.game)
    buffers = 4 * math.prod(about.observation.shape) * about.observation.dtype.itemsize
    return count * (buffers + (_ATARI if about.is_atari else _GAME))


def _bytes(tree: Any) -> int:
    """Of the arrays of a tree, by their shapes."""

    def size(x: Any) -> int:
        x = jax.eval_shape(jax.random.key_data, x) if _is_key(x) else x
        return int(math.prod(x.shape) * x.dtype.itemsize)

    return sum(map(size, jax.tree.leaves(tree)))


def _is_key(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jax.dtypes.prng_key))


def _refuse(
    parts: Mapping[str, int], room: int | None, config: Config, where: str = "of memory"
) -> None:
    if room is not None and sum(parts.values()) > room:
        raise SettingsError(
            f"This would take about {_listed(parts)} {where}, of which {shown(room)} are free. "
            f"{_advice(parts, config)}"
        )


def _listed(parts: Mapping[str, int]) -> str:
    """The sum, and in brackets what makes it."""
    total = sum(parts.values())
    large = [(name, x) for name, x in Counter(parts).most_common() if 100 * x > total]
    return f"{shown(total)} ({', '.join(f'{name} {shown(x)}' for name, x in large)})"


def _advice(parts: Mapping[str, int], config: Config) -> str:
    """What makes the largest part smaller."""
    largest = max(parts, key=lambda name: parts[name])
    own: Any = config.settings
    has = ["games"] if set(parts) == {"environments"} else [*vars(own)]
    if len(look_up(config.game).observation.shape) != 3:
        has.append("hidden")
    flags = [flag(name) for name in _CAUSES.get(largest, ("hidden",)) if name in has]
    if len(config.seeds) > 1:
        flags.append("the number of --seeds")
    return f"Lower {' or '.join(flags)}." if flags else "Train on a larger machine."


def _free_on_device() -> int | None:
    if jax.default_backend() == "cpu":
        return None
    stats = jax.local_devices()[0].memory_stats() or {}
    known = "bytes_limit" in stats
    return int(stats["bytes_limit"]) - int(stats["bytes_in_use"]) if known else None


def _available(root: Path) -> int | None:
    """What the system could give to anyone."""
    if platform.system() == "Linux":
        found = re.search(r"^MemAvailable: +(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
        return 1024 * int(found[1]) if found else None
    with contextlib.suppress(ImportError):
        psutil: Any = importlib.import_module("psutil")  # which comes with Orbax
        return int(psutil.virtual_memory().available)
    return None


def _cgroups(root: Path) -> Iterator[int]:
    """What each limit of a container, of either version of cgroups, still leaves."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        names = ("memory.max", "memory.current", "inactive_file")
        if controllers:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        # Inside a container the path may be the host's, and only the mount's root be there.
        inner = mount / path.strip("/")
        for group in (inner, *inner.parents):
            limit, usage = (_text(group / name).strip() for name in names[:2])
            if limit.isdigit() and usage.isdigit():
                cached = re.search(
                    rf"^{names[2]} (\d+)", _text(group / "memory.stat"), re.MULTILINE
                )
                yield int(limit) - int(usage) + (int(cached[1]) if cached else 0)
            if group == mount:
                break


def _address_space(root: Path) -> int | None:
    """What `ulimit -v` leaves."""
    with contextlib.suppress(ImportError):
        resource: Any = importlib.import_module("resource")  # not on Windows
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        used = re.search(r"^VmSize:\s+(\d+) kB", _text(root / "proc/self/status"), re.MULTILINE)
        if limit != resource.RLIM_INFINITY and used:
            return int(limit) - 1024 * int(used[1])
    return None


def _text(path: Path) -> str:
    """Of a file, empty where it cannot be read."""
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
