"""What TensorBoard event files hold, read without TensorBoard."""

from __future__ import annotations

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
