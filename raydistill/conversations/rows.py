"""Lines and records of an input file with their places, and the quarantine for malformed ones. No format is known here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from raydistill.errors import DataError
from raydistill.storage.files import open_input, read_input

_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\ufeff\u00ad"))
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MOST_TURNS = 100_000
# Control characters, line and paragraph separators, zero-width characters and byte order marks: nobody sees them, and an
# id with one of them never equals the one that was meant.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u2028\u2029\u2060\ufeff]")


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used: `place` is "file:line" (or "file: record n"), `reason` says what is wrong with it."""

    place: str
    reason: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text and its place."""

    place: str
    text: str


class RowError(ValueError):
    """Why the row being parsed cannot be used; whoever knows the row's place turns it into a BadRow."""


@dataclass
class Quarantine:
    """Malformed rows, collected up to a limit.

    Attributes:
        max_bad_rows: rows that may be left out; the next one raises.
        rows: (place, reason) of each row left out so far.
    """

    max_bad_rows: int
    rows: list[tuple[str, str]] = field(default_factory=list)

    def add(self, row: BadRow) -> None:
        """Keep the row, or raise DataError when the limit is passed."""
        self.rows.append((row.place, row.reason))
        if len(self.rows) > self.max_bad_rows:
            seen = f" (malformed row number {len(self.rows)})" if self.max_bad_rows else ""
            raise DataError(
                f"{row.place}: {row.reason}{seen}; correct the row, or raise data.max_bad_rows (now {self.max_bad_rows}) "
                "to leave such rows out and list them"
            )


def numbered_lines(stream: BinaryIO, uri: str) -> Iterator[Line | BadRow]:
    """Yield the non-blank lines of UTF-8 text with their places.

    A byte order mark and CR LF line ends are removed; a line that is not UTF-8 comes as a BadRow.
    """
    for number, raw in enumerate(stream, start=1):
        if number == 1:
            raw = raw.removeprefix(_BYTE_ORDER_MARK)
        place = f"{uri}:{number}"
        try:
            text = raw.rstrip(b"\r\n").decode("utf-8")
        except UnicodeDecodeError as error:
            yield BadRow(place, f"is not UTF-8 (byte {error.start + 1} of the line)")
            continue
        if text.strip():
            yield Line(place, text)


def json_list(uri: str, expected: str) -> list[Any]:
    """Return the records of a file that is one JSON list, a byte order mark allowed.

    Args:
        uri: a file small enough to be held in memory.
        expected: what such a list is in this format, for messages.

    Raises DataError naming the line of a mistake; StorageError as `read_input`.
    """
    try:
        records = json.loads(read_input(uri).decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(f"{uri}:{error.lineno}: is not valid JSON ({error.msg}); {expected} are one JSON list") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{uri}: is not JSON in UTF-8 ({error}); fetch the file again") from None
    if not isinstance(records, list):
        raise DataError(f"{uri}: must be a JSON list ({expected} are); check the source's reader")
    return records


def json_records(uri: str, expected: str) -> Iterator[tuple[str, Any] | BadRow]:
    """Yield (place, record) of a file that is one JSON list, or that has one JSON value a line.

    A line that is no JSON comes as a BadRow; the records of a list have places "file: record n". Raises as `json_list`.
    """
    with open_input(uri) as stream:
        beginning = stream.read(1 << 16).removeprefix(_BYTE_ORDER_MARK).lstrip()
    if beginning.startswith(b"["):
        for number, record in enumerate(json_list(uri, expected), start=1):
            yield f"{uri}: record {number}", record
        return
    with open_input(uri) as stream:
        for line in numbered_lines(stream, uri):
            if isinstance(line, BadRow):
                yield line
                continue
            try:
                yield line.place, json.loads(line.text)
            except (ValueError, RecursionError) as error:
                yield BadRow(line.place, f"is not valid JSON ({error}); {expected} are a JSON list, or one record a line")


def json_object(text: str) -> dict[str, Any]:
    """Parse a line that must hold one JSON object. Raises RowError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(f"is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise RowError(f"must be a JSON object, not {_json_type(value)}")
    return value


def identifier(record: dict[str, Any], name: str) -> str:
    """Return a field that identifies something: a non-empty string, or an integer, which is written out. Raises RowError."""
    value = record.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    text = required_text(record, name)
    printable = text.isprintable()
    if text != text.strip() or (not printable and any(character in text for character in "\t\r\n")):
        raise RowError(f"field {name!r} ({text!r}) must not begin or end with a space nor hold a tab or a line break")
    unseen = None if printable else _UNSEEN.search(text)
    if unseen:
        raise RowError(f"field {name!r} ({text!r}) holds the invisible character U+{ord(unseen[0]):04X}; take it out")
    return text


def turn_number(record: dict[str, Any], name: str, digits: bool = False) -> int:
    """Return a field that is the number of a turn: an integer from 1, or with `digits` a string of one. Raises RowError."""
    value = record.get(name)
    if digits and isinstance(value, str) and value.isdecimal() and len(value) < 7:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST_TURNS:
        raise RowError(f"{name} must be an integer from 1, not {_shortened(value)}")
    return value


def required_text(record: dict[str, Any], name: str) -> str:
    """Return a field that must be a string with something in it. Raises RowError."""
    if name not in record:
        raise RowError(f"has no field {name!r}")
    text = optional_text(record, name)
    if not text.strip():
        raise RowError(f"field {name!r} is empty")
    return text


def optional_text(record: dict[str, Any], name: str) -> str:
    """Return a field that is a string, null or absent; "" for the last two. Raises RowError."""
    value = record.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError(f"field {name!r} must be a string, not {_json_type(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        # JSON escapes can spell half a surrogate pair, which no later stage can store.
        raise RowError(f"field {name!r} holds an unpaired surrogate escape") from None
    return value


def text_list(record: dict[str, Any], name: str) -> list[str]:
    """Return a field that is a list of strings, null or absent; [] for the last two. Raises RowError."""
    value = record.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise RowError(f"field {name!r} must be an array, not {_json_type(value)}")
    return [optional_text({name: item}, name) for item in value]


def spoken_text(record: dict[str, Any], name: str) -> str:
    """Return a field as `optional_text`, invisible characters removed and runs of white space made one space."""
    return " ".join(optional_text(record, name).translate(_INVISIBLE).split())


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")
