"""The command line of a run, made from the registry and the fields of its configuration."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxsoft.agents.registry import ALGORITHMS
from jaxsoft.agents.settings import check_range, count, flag, said, word
from jaxsoft.cli.config import (
    Config,
    ConfigError,
    Runtime,
    complete,
    fields_of,
    read,
    to_json,
)

__all__ = ["Parser", "called", "parse", "parser", "stop_with"]


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help of at most 100 columns, which breaks no flag and no default."""

    def __init__(self, prog: str) -> None:
        columns = shutil.get_terminal_size().columns
        super().__init__(prog, max_help_position=33, width=min(columns, 100) - 1)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, argparse.BooleanOptionalAction):
            return action.option_strings[0].replace("--", "--[no-]", 1)
        return super()._format_action_invocation(action)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """Suggests the flag that an unknown one may have meant."""

    def __init__(self, **given: Any) -> None:
        super().__init__(formatter_class=_Help, allow_abbrev=False, **given)

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

    def format_help(self) -> str:
        """With plain spaces where `_whole` forbade a break."""
        return super().format_help().replace(_UNBROKEN, " ")


_UNBROKEN = "\N{NO-BREAK SPACE}"


def _whole(text: str) -> str:
    """A text that no line of the help ends within."""
    return text.replace(" ", _UNBROKEN)


def _own() -> dict[str, dataclasses.Field[Any]]:
    """Name -> field of every setting that some algorithm has."""
    found: dict[str, dataclasses.Field[Any]] = {}
    for entry in ALGORITHMS.values():
        found |= {key: x for key, x in fields_of(entry.settings).items() if key not in found}
    return found


def _having(name: str) -> list[str]:
    """The algorithms that have a setting."""
    return [key for key, entry in ALGORITHMS.items() if name in fields_of(entry.settings)]


def parser() -> Parser:
    """The command line of a run."""
    out = Parser(
        prog="jaxsoft train",
        usage="jaxsoft train --game GAME --algorithm NAME --steps N --out PATH [options]\n"
        "       jaxsoft train --resume --out PATH",
        description=_description(),
        epilog=_epilogue(),
        add_help=False,
    )
    groups: dict[str, Any] = {}

    def add(name: str, spec: dataclasses.Field[Any], default: str) -> None:
        having = textwrap.fill("only " + ", ".join(_having(name)), 98, subsequent_indent=" " * 5)
        title = spec.metadata["group"] or having
        if title not in groups:
            groups[title] = out.add_argument_group(title)
        options = dict(spec.metadata["parser"])
        if name == "algorithm":
            options["metavar"] = "NAME"
        elif "choices" not in options and "action" not in options:
            kinds = {count: "N", float: "X", Path: "PATH", None: "GAME"}
            options["metavar"] = kinds[options.get("type")]
        shown = default if options.get("action") != "store_true" else ""
        parts = [spec.metadata["text"]]
        parts += [_whole(f"(default {shown})")] if shown else []
        parts += [_whole(f"[{spec.metadata['source']}]")] if spec.metadata["source"] else []
        text = " ".join(parts).replace("%", "%%")
        groups[title].add_argument(flag(name), dest=name, default=None, help=text, **options)

    running = fields_of(Runtime)
    specs = fields_of(Config) | {"out": running["out"]}
    for name, spec in specs.items():
        add(name, spec, _pair(spec.metadata["images"], spec.metadata["vectors"]))
    for name, spec in sorted(_own().items(), key=lambda item: not item[1].metadata["group"]):
        add(name, spec, _usual(name))
    for name, spec in running.items():
        if name not in specs:
            add(name, spec, _pair(spec.metadata["images"], spec.metadata["images"]))
    last = list(groups.values())[-1]
    last.add_argument("-h", "--help", action="help", help="show this text and exit")
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
    return _open(name, shown)


def _usual(name: str) -> str:
    """The default of a setting, where an algorithm has none of its own."""
    return _open(name, _pair(*(_own()[name].metadata[kind] for kind in ("images", "vectors"))))


def _open(name: str, shown: str) -> str:
    """An n that is left open is the rollout's length."""
    return shown or ("--rollout-length" if name == "n" else "")


def _column(rows: dict[str, str]) -> str:
    """Names and what is said of each, side by side."""
    indent = " " * 20
    return "\n".join(
        textwrap.fill(f"  {name:<18}{text}", 98, subsequent_indent=indent, break_on_hyphens=False)
        for name, text in rows.items()
    )


def _description() -> str:
    return f"""Trains one algorithm on one game, for any number of seeds side by side.

algorithms:
{_column({name: entry.about for name, entry in ALGORITHMS.items()})}

Defaults are given as: images / other observations. Those for images are of the paper [§…], or of
openai/baselines' A2C [A2C] and DQN [DQN] of 2017, which its authors ran; the others were found by
trial on small games. Some algorithms have defaults of their own, see the end."""


def _epilogue() -> str:
    others = {}
    for algorithm in ALGORITHMS:
        own = {name: _default(algorithm, name) for name in _own()}
        differing = {name: x for name, x in own.items() if x and x != _usual(name)}
        architecture = ALGORITHMS[algorithm].architecture
        for name, value in architecture.items():
            spec = fields_of(Config)[name].metadata
            differing[name] = _pair(value if name == "layer_norm" else spec["images"], value)
        if differing:
            words = [_whole(f"{flag(name)} {x}") for name, x in differing.items()]
            others[algorithm] = ", ".join(words)
    return f"""defaults of some algorithms, where they differ from those above:
{_column(others)}

--out gets config.json, run.json, metrics.csv, curve.png, checkpoints/ and tensorboard/. SIGINT and
SIGTERM save and exit. A run that --resume continues has learned exactly what it had; only its games
begin again."""


def parse(words: Sequence[str] | None = None) -> tuple[Config, Runtime]:
    """Config and runtime of a command line; with --resume the folder's own config fills the gaps.

    Given settings must agree with the folder's.
    """
    out = parser()
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
        return _agreed(read(runtime.out)[0], given, runtime), runtime
    for name in ("game", "algorithm", "steps"):
        if name not in given:
            out.error(f"{flag(name)} is missing")
    return complete(given), runtime


def _agreed(before: Config, given: dict[str, Any], runtime: Runtime) -> Config:
    """The configuration of a run that is resumed, if what was given agrees with it."""
    has = {name: tuple(x) if isinstance(x, list) else x for name, x in to_json(before).items()}
    others = [
        f"{said(name, value)}: the run there has "
        + (said(name, has[name]) if name in has else f"no {flag(name)}")
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


def called() -> str:
    """How to call this command again: by its path where a shell does not find its name."""
    path = Path(sys.argv[0])
    return str(path) if path.name == "jaxsoft" and not shutil.which("jaxsoft") else "jaxsoft"


def stop_with(message: object) -> int:
    """Says why a command ends, and is its exit status."""
    print(f"error: {message}", file=sys.stderr)
    return 2
