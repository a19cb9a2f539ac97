"""The command line of a run, made from the fields of its configuration."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from jaxsoft.cli.config import Config, ConfigError, Runtime, count, flag, from_json, word
from jaxsoft.cli.defaults import (
    BY_ALGORITHM,
    BY_ALGORITHM_VECTOR,
    DESCRIPTIONS,
    IMAGE_ON_POLICY,
    IMAGE_REPLAY,
    REPLAY,
    VECTOR_ON_POLICY,
    VECTOR_REPLAY,
)

__all__ = ["parse", "parser", "stop_with"]


class _Parser(argparse.ArgumentParser):
    """Suggests the flag that an unknown one may have meant."""

    def error(self, message: str) -> Any:
        if message.startswith("unrecognized arguments"):
            flags = [x for action in self._actions for x in action.option_strings]
            for word in message.split()[2:]:
                if word.startswith("--"):
                    wanted = word.split("=")[0].replace("_", "-")
                    near = difflib.get_close_matches(wanted, flags, n=3)
                    message += f"\n  {word}: did you mean {' or '.join(near)}?" if near else ""
        super().error(message)


def parser(prog: str = "python -m experiments.train") -> argparse.ArgumentParser:
    """The command line of a run."""
    out = _Parser(
        prog=prog,
        usage=f"{prog} --game GAME --algorithm NAME --steps N --out DIR [options]\n"
        f"       {prog} --resume --out DIR",
        description="Trains one algorithm on one game, for any number of seeds side by side.",
        epilog=_epilogue(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    groups: dict[str, Any] = {}
    for cls in (Config, Runtime):
        for spec in dataclasses.fields(cls):
            title = "running" if cls is Runtime else spec.metadata["group"]
            if title not in groups:
                groups[title] = out.add_argument_group(title)
            options = dict(spec.metadata["parser"])
            if spec.name == "algorithm":
                options["metavar"] = "NAME"
            elif "choices" not in options and "action" not in options:
                kinds = {count: "N", float: "X", Path: "PATH", None: "GAME"}
                options["metavar"] = kinds[options.get("type")]
            groups[title].add_argument(
                flag(spec.name), dest=spec.name, default=None, help=_help(spec, cls), **options
            )
    return out


def _epilogue() -> str:
    def table(rows: Mapping[str, str]) -> str:
        return "\n".join(f"  {name:<18}{text}" for name, text in rows.items())

    def own(tables: Mapping[str, Mapping[str, Any]]) -> str:
        words = {
            name: " ".join(f"{flag(key)} {word(x)}" for key, x in values.items())
            for name, values in tables.items()
        }
        return table(words)

    return f"""algorithms:
{table(DESCRIPTIONS)}

Defaults are given as: images / other observations. These algorithms have others:
{own(BY_ALGORITHM)}
and, but for images:
{own(BY_ALGORITHM_VECTOR)}

[A2C] and [DQN] are openai/baselines of 2017, which the paper's §6.1, §6.3 and §6.2 ran and name
only in part; [§…] is the paper. What is not about images was found by trial on small games.

--out gets config.json, run.json, metrics.csv, curve.png, checkpoints/ and tensorboard/. SIGINT and
SIGTERM save and leave; --resume goes on: the learner is then where it was, its games begin anew.
"""


def _help(spec: dataclasses.Field[Any], cls: type) -> str:
    meta = spec.metadata
    shown = "" if spec.default is None or spec.default is MISSING else word(spec.default)
    if cls is Config and spec.default is None:
        kinds: tuple[str, ...] = ("soft_dqn_kl" if meta["only"] == REPLAY else "natural_pg",)
        if not meta["only"]:
            kinds = ("a2c", "soft_dqn_kl")
        words = []
        for algorithm in kinds:
            pair = [
                (IMAGE_REPLAY if images else VECTOR_REPLAY)
                if algorithm in REPLAY
                else (IMAGE_ON_POLICY if images else VECTOR_ON_POLICY)
                for images in (True, False)
            ]
            given = [table[spec.name] for table in pair if spec.name in table]
            words.append(" / ".join(dict.fromkeys(map(word, given))))
        words = list(dict.fromkeys(x for x in words if x))
        shown = "; with a replay ".join(words)
        shown = {"n": "the rollout; with a replay 1"}.get(spec.name, shown)
        if meta["group"] == "environment" and spec.name != "max_episode_steps":
            shown = "yes"
    parts = [meta["text"]]
    if meta["only"] and meta["only"] != REPLAY:
        parts.append(f"({', '.join(meta['only'])})")
    if shown:
        parts.append(f"(default {shown})")
    if meta["source"]:
        parts.append(f"[{meta['source']}]")
    return " ".join(parts).replace("%", "%%")


def parse(words: Sequence[str] | None = None) -> tuple[Config, Runtime]:
    """Config and runtime of a command line; with --resume the folder's own config fills the gaps.

    Given settings must agree with the folder's.
    """
    out = parser()
    given = vars(out.parse_args(words))
    if given["out"] is None:
        out.error("--out is missing: the folder to write to")
    saved = given["out"] / "config.json"
    if going_on := given["resume"] and saved.exists():
        before = json.loads(saved.read_text())
        before.pop("version", None)
        config = dataclasses.asdict(from_json(before))
    else:
        config = {spec.name: spec.default for spec in dataclasses.fields(Config)}
        for name in ("game", "algorithm", "steps"):
            if given[name] is None:
                out.error(f"{flag(name)} is missing")
    others = []
    for name, before in config.items():
        if given[name] is not None:
            value = tuple(given[name]) if isinstance(given[name], list) else given[name]
            if going_on and value != before:
                has = "none" if before is None else word(before)
                others.append(f"{flag(name)} {word(value)}: the run there has {has}")
            config[name] = value
    if others:
        raise ConfigError(
            f"--out {given['out']} cannot be gone on with by other settings.\n  "
            + "\n  ".join(others)
            + "\nLeave them out, or name another folder."
        )
    chosen: dict[str, Any] = {
        spec.name: spec.default if given[spec.name] is None else given[spec.name]
        for spec in dataclasses.fields(Runtime)
    }
    runtime = Runtime(**chosen)
    leasts = {"until": 1, "env_threads": 0, "report_every": 1, "checkpoint_seconds": 0, "keep": 1}
    leasts["checkpoint_steps"] = 1
    for name, least in leasts.items():
        value = getattr(runtime, name)
        if value is not None and not value >= least:
            raise ConfigError(f"{flag(name)} {value} is less than {least}. Give at least that.")
    return Config(**config), runtime


def stop_with(message: object) -> int:
    """Says why a command ends, and is its exit status."""
    print(f"error: {message}", file=sys.stderr)
    return 2
