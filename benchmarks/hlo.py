"""What a compiler made of a program: kernels, launches and bytes, read off its HLO text."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_BYTES = {"pred": 1, "bf16": 2}
# What is no work of the device's.
_FREE = (
    "parameter",
    "constant",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "after-all",
    "partition-id",
)
_SLICES = ("slice", "dynamic-slice")


class Buffer(NamedTuple):
    """A part of a result: its size, and whether it is in the memory beside the cores of a TPU."""

    size: int
    near: bool


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    operation: str
    buffers: tuple[Buffer, ...]
    operands: tuple[str, ...]
    attributes: str

    def size(self, *, near: bool = True) -> int:
        return sum(x.size for x in self.buffers if near or not x.near)

    def called(self, *keys: str) -> list[str]:
        return [
            name
            for key in keys
            for found in re.findall(rf"\b{key}=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes)
            for name in re.findall(r"%([\w.\-]+)", found)
        ]


Computation = dict[str, Instruction]


class Work(NamedTuple):
    """What a program does once.

    Attributes:
      kernels: in the compiled program, those of a loop's body among them.
      launches: the same, those of a body as often as it runs.
      moved: bytes that they read and write; of an operand of which they take slices, the slices.
      far: of these, without the memory beside the cores, where there is one.
      whole: bytes of the entry's kernels with all their operands, loops as one: a cruder count, for
        comparison with figures that were made so.
    """

    kernels: int
    launches: int
    moved: int
    far: int
    whole: int

    def __add__(self, other: object) -> "Work":
        if not isinstance(other, Work):
            return NotImplemented
        return Work(*(a + b for a, b in zip(self, other, strict=True)))


def work(text: str) -> Work:
    """Of a whole module."""
    computations, entry = parse(text)
    total = Work(0, 0, 0, 0, 0)
    for kernel in _kernels(computations, entry):
        total += kernel
    simple = 0
    for x in computations[entry].values():
        if x.operation not in _FREE:
            simple += x.size() + sum(computations[entry][y].size() for y in x.operands)
    return total._replace(whole=simple)


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """The computations by name, and the name of the one that is entered."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header:
            current = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (instruction := _instruction(line)):
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("no HLO: expected a module with an ENTRY computation")
    return computations, entry


def _instruction(line: str) -> Instruction | None:
    found = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (.*)", line)
    if not found:
        return None
    name, rest = found.groups()
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    operation = re.match(r"\s*([\w\-]+)\(", rest[end:])
    if not operation:
        return None
    start = end + operation.end() - 1
    close = _closing(rest, start)
    # A parameter's operand is its number.
    pattern = r"(\d+)" if operation[1] == "parameter" else r"%([\w.\-]+)"
    operands = tuple(re.findall(pattern, rest[start:close]))
    return Instruction(name, operation[1], tuple(_buffers(rest[:end])), operands, rest[close:])


def _closing(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    raise ValueError(f"no HLO: expected a closing parenthesis in {text[:80]}")


def _buffers(shape: str) -> Iterator[Buffer]:
    for dtype, sizes, layout in re.findall(r"\b([a-z]\w*)\[([0-9,]*)\](\{[^}]*\})?", shape):
        bits = re.search(r"\d+", dtype)
        width = _BYTES.get(dtype) or (int(bits[0]) // 8 if bits else 0)
        number = math.prod(_padded([int(n) for n in sizes.split(",") if n], layout))
        yield Buffer(number * width, re.search(r"S\([1-9]", layout) is not None)


def _padded(sizes: list[int], layout: str) -> list[int]:
    """With the axes that lie in tiles filled up to whole ones, as a TPU has them."""
    tile = re.search(r"T\(([\d,]+)\)", layout)
    if tile and sizes:
        minor = [int(axis) for axis in re.findall(r"\d+", layout.split(":", maxsplit=1)[0])]
        widths = [int(n) for n in tile[1].split(",")]
        for axis, width in zip(minor, reversed(widths), strict=False):
            sizes[axis] = -(-sizes[axis] // width) * width
    return sizes


def _kernels(computations: dict[str, Computation], name: str) -> Iterator[Work]:
    here = computations[name]
    for x in here.values():
        if x.operation == "while":
            trips = re.search(r'known_trip_count"?:\{"?n"?:"(\d+)"', x.attributes)
            times = int(trips[1]) if trips else 1
            for kernel in _kernels(computations, x.called("body")[0]):
                yield Work(
                    kernel.kernels,
                    times * kernel.launches,
                    times * kernel.moved,
                    times * kernel.far,
                    0,
                )
        elif x.operation in ("call", "conditional"):
            branches = x.called("to_apply", "branch_computations", "true_computation")
            for branch in branches[:1]:
                yield from _kernels(computations, branch)
        elif x.operation not in _FREE and not x.operation.endswith("-done"):
            yield _kernel(computations, here, x)


def _kernel(computations: dict[str, Computation], here: Computation, x: Instruction) -> Work:
    if x.operation.endswith("-start"):
        # The slice that is copied, out of where it lay into where it will lie.
        source, target = x.buffers[0], x.buffers[min(1, len(x.buffers) - 1)]
        size = min(source.size, target.size)
        far = size * ((not source.near) + (not target.near))
        return Work(1, 1, 2 * size, far, 0)
    if 'custom_call_target="ConcatBitcast"' in x.attributes:
        return Work(0, 0, 0, 0, 0)
    inside = [computations[name] for name in x.called("calls")[:1]]
    taken = _taken(inside[0]) if inside and x.operation == "fusion" else {}
    moved = far = 0
    for i, operand in enumerate(x.operands):
        buffers = here[operand].buffers
        whole = sum(b.size for b in buffers)
        size = min(taken.get(i, whole), whole)
        if x.operation in _SLICES and i == 0:
            size = x.size()
        if x.operation == "dynamic-update-slice" and i == 0:
            size = 0
        moved += size
        far += size if any(not b.near for b in buffers) else 0
    written = _written(here, inside, x)
    moved += written
    far += written if any(not b.near for b in x.buffers) else 0
    return Work(1, 1, moved, far, 0)


def _taken(fused: Computation) -> dict[int, int]:
    """By the number of a parameter that is only sliced, or only written into: bytes taken of it."""
    taken = {}
    for x in fused.values():
        if x.operation != "parameter":
            continue
        uses = [y for y in fused.values() if x.name in y.operands]
        sizes = [_use(x.name, y) for y in uses]
        if uses and all(size is not None for size in sizes):
            taken[int(x.operands[0])] = sum(size or 0 for size in sizes)
    return taken


def _use(name: str, x: Instruction) -> int | None:
    if x.operation in _SLICES and x.operands[0] == name:
        return x.size()
    into = x.operation == "dynamic-update-slice" and x.operands[0] == name
    return 0 if into and name not in x.operands[1:] else None


def _written(here: Computation, inside: Sequence[Computation], x: Instruction) -> int:
    if x.operation == "dynamic-update-slice":
        return here[x.operands[1]].size()
    if inside and x.operation == "fusion":
        updates = [y for y in inside[0].values() if y.operation == "dynamic-update-slice"]
        if len(updates) == len(x.buffers):
            return sum(inside[0][y.operands[1]].size() for y in updates)
    return x.size()
