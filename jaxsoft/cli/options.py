"""The command line of a run, made from the registry and the fields of its configuration."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxsoft.agents.registry import ALGORITHMS
from jaxsoft.agents.settings import count, flag
from jaxsoft.cli.config import (
    Config,
    ConfigError,
    Runtime,
    check_range,
    complete,
    fields_of,
    from_json,
    to_json,
    word,
)

__all__ = ["Parser", "parse", "parser", "stop_with"]

PROG = "jaxsoft train"


class Parser(argparse.ArgumentParser):
    """Suggests the flag that an unknown one may have meant."""

    def error(self, message: str) -> Any:
        """Adds flags of similar names."""
        if message.startswith("unrecognized arguments"):
            flags = [x for action in self._actions for x in action.option_strings]
            for given in message.split()[2:]:
                if given.startswith("--"):
                    wanted = given.split("=")[0].replace("_", "-")
                    near = difflib.get_close_matches(wanted, flags, n=3)
                    message += f"\n  {given}: did you mean {' or '.join(near)}?" if near else ""
        super().error(message)


def _own() -> dict[str, dataclasses.Field[Any]]:
    """Name -> field of every setting that some algorithm has."""
    found: dict[str, dataclasses.Field[Any]] = {}
    for entry in ALGORITHMS.values():
        found = fields_of(entry.settings) | found
    return found


def _having(name: str) -> list[str]:
    """The algorithms that have a setting."""
    return [key for key, entry in ALGORITHMS.items() if name in fields_of(entry.settings)]


def parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The command line of a run."""
    out = Parser(
        prog=prog,
        usage=f"{prog} --game GAME --algorithm NAME --steps N --out DIR [options]\n"
        f"       {prog} --resume --out DIR",
        description="Trains one algorithm on one game, for any number of seeds side by side.",
        epilog=_epilogue(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    groups: dict[str, Any] = {}

    def add(title: str, name: str, spec: dataclasses.Field[Any], default: str) -> None:
        if title not in groups:
            groups[title] = out.add_argument_group(title)
        options = dict(spec.metadata["parser"])
        if name == "algorithm":
            options["metavar"] = "NAME"
        elif "choices" not in options and "action" not in options:
            kinds = {count: "N", float: "X", Path: "PATH", None: "GAME"}
            options["metavar"] = kinds[options.get("type")]
        parts = [spec.metadata["text"]]
        parts += [f"(default {default})"] if default else []
        parts += [f"[{spec.metadata['source']}]"] if spec.metadata["source"] else []
        text = " ".join(parts).replace("%", "%%")
        groups[title].add_argument(flag(name), dest=name, default=None, help=text, **options)

    for name, spec in fields_of(Config).items():
        add("run", name, spec, _pair(spec.metadata["images"], spec.metadata["vectors"]))
    for name, spec in _own().items():
        having = _having(name)
        title = "every algorithm" if len(having) == len(ALGORITHMS) else ", ".join(having)
        add(title, name, spec, _usual(name))
    for name, spec in fields_of(Runtime).items():
        add("running", name, spec, _pair(spec.metadata["images"], spec.metadata["images"]))
    return out


def _pair(images: Any, vectors: Any) -> str:
    """A default for images and one for other observations, in words."""
    known = [word(x) for x in (images, vectors) if x is not None and x is not ...]
    return " / ".join(dict.fromkeys(known))


def _default(algorithm: str, name: str) -> str:
    entry = ALGORITHMS[algorithm]
    if name not in fields_of(entry.settings):
        return ""
    shown = _pair(*(entry.defaults(images=images)[name] for images in (True, False)))
    return shown or "the rollout"


def _usual(name: str) -> str:
    """The default of most algorithms that have a setting."""
    return Counter(_default(algorithm, name) for algorithm in _having(name)).most_common(1)[0][0]


def _epilogue() -> str:
    rows = "\n".join(f"  {name:<18}{entry.about}" for name, entry in ALGORITHMS.items())
    others = []
    for algorithm in ALGORITHMS:
        own = {name: _default(algorithm, name) for name in _own()}
        words = "; ".join(f"{flag(name)} {x}" for name, x in own.items() if x and x != _usual(name))
        if words:
            others.append(
                textwrap.fill(f"  {algorithm:<18}{words}", 96, subsequent_indent=" " * 20)
            )
    return f"""algorithms:
{rows}

Defaults are given as: images / other observations. These algorithms have others:
{chr(10).join(others)}

[A2C] and [DQN] are openai/baselines of 2017, which the paper's §6.1, §6.3 and §6.2 ran and name
only in part; [§…] is the paper. What is not about images was found by trial on small games.

--out gets config.json, run.json, metrics.csv, curve.png, checkpoints/ and tensorboard/. SIGINT and
SIGTERM save and leave; --resume continues: the learner is then where it was, its games begin again.
"""


def parse(words: Sequence[str] | None = None, prog: str = PROG) -> tuple[Config, Runtime]:
    """Config and runtime of a command line; with --resume the folder's own config fills the gaps.

    Given settings must agree with the folder's.
    """
    out = parser(prog)
    every = {
        name: tuple(x) if isinstance(x, list) else x
        for name, x in vars(out.parse_args(words)).items()
    }
    given = {name: x for name, x in every.items() if x is not None}
    if "out" not in given:
        out.error("--out is missing: the folder to write to")
    running = {name: given.pop(name) for name in fields_of(Runtime) if name in given}
    defaults = {name: spec.metadata["images"] for name, spec in fields_of(Runtime).items()}
    runtime = Runtime(**defaults | running)
    check_range(runtime)
    saved = runtime.out / "config.json"
    if runtime.resume and saved.exists():
        return _agreed(from_json(json.loads(saved.read_text())), given, runtime), runtime
    for name in ("game", "algorithm", "steps"):
        if name not in given:
            out.error(f"{flag(name)} is missing")
    return complete(given), runtime


def _agreed(before: Config, given: dict[str, Any], runtime: Runtime) -> Config:
    """The configuration of a run that is resumed, if what was given agrees with it."""
    has = {name: tuple(x) if isinstance(x, list) else x for name, x in to_json(before).items()}
    others = [
        f"{flag(name)} {word(value)}: the run there has "
        + (word(has[name]) if name in has else "none")
        for name, value in given.items()
        if has.get(name) != value
    ]
    if others:
        raise ConfigError(
            f"--out {runtime.out} cannot be resumed with other settings.\n  "
            + "\n  ".join(others)
            + "\nLeave them out, or name another folder."
        )
    return before


def stop_with(message: object) -> int:
    """Says why a command ends, and is its exit status."""
    print(f"error: {message}", file=sys.stderr)
    return 2
