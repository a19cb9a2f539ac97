"""TensorBoard's event files, read."""

import struct
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event


def events(directory: Path) -> list[Event]:
    """TFRecord: length, its checksum, the event, its checksum; files in TensorBoard's order."""
    found = []
    for file in sorted(directory.iterdir()):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def scalars(found: list[Event]) -> list[tuple[int, str, float]]:
    return [(e.step, v.tag, v.simple_value) for e in found for v in e.summary.value]
