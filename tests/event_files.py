"""What the files of TensorBoard and of an offline run of Weights & Biases hold, read without their programs."""

from __future__ import annotations

import struct
from pathlib import Path


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """Return (tag, step) -> value of all event files directly in a folder."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in sorted(folder.glob("events.*")):
        content = path.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + size])
            found |= {
                (value.tag, event.step): value.simple_value
                for value in event.summary.value
                if value.WhichOneof("value") == "simple_value"
            }
            content = content[12 + size + 4 :]
    return found


def wandb_content(path: Path) -> bytes:
    """Return the records of an offline run, joined: a log of blocks of 32 KiB, whose borders may lie within a record."""
    content, place, found = path.read_bytes(), 7, b""
    while place < len(content):
        left = 32768 - place % 32768
        if left < 7:  # too short for a header: padding
            place += left
            continue
        _, length, _ = struct.unpack("<IHB", content[place : place + 7])
        found += content[place + 7 : place + 7 + length]
        place += 7 + length
    return found
