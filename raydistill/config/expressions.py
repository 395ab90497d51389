"""The text form of small values: `0.9*kld(tau=1) + 0.1*infonce(tau=0.08)`, `window(first=11, last=960)`, `flops<=1.8`.

A value is a frozen dataclass with a NAME; its fields are its parameters. Text and value convert both ways: parsing what
`str(value)` gives returns an equal value, and parameters at their default are left out. What the values mean lives with
the sections that use them (`objective`, `sampling`, `regularisation`).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

_CALL = re.compile(r"\s*([a-z][a-z0-9_]*)\s*(?:\(([^()]*)\))?\s*")
_NUMBER = re.compile(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?)\s*(\*?)", re.IGNORECASE)
_NEVER_CLOSED = "the bracket is never closed (within braces of YAML, put the text into quotes)"
_PARAMETER = re.compile(r"\s*([a-z_][a-z0-9_]*)\s*=\s*([^,\s]+)\s*")


@dataclass(frozen=True)
class Value:
    """Base of values with a text form; subclasses are frozen dataclasses whose fields all have defaults.

    Fields are float, int, bool, str, Literal of strings, or one of these or None. `check` says what a type cannot.
    """

    NAME: ClassVar[str] = ""

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise ValueError with a sentence when the parameters do not go together."""

    def __str__(self) -> str:
        given = [
            f"{field.name}={number(getattr(self, field.name))}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"{self.NAME}({', '.join(given)})" if given else self.NAME


V = TypeVar("V", bound=Value)


def number(value: Any) -> str:
    """Return the shortest text that parses back to the same parameter."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return repr(value) if isinstance(value, float) else str(value)


def parse_value(text: str, kinds: Mapping[str, type[V]]) -> V:
    """Return the value that `NAME` or `NAME(parameter=value, ...)` describes. Raises ValueError with a sentence."""
    value, rest = _parse_call(text, kinds)
    if rest:
        reason = _NEVER_CLOSED if _is_open(rest) else f"{rest!r} follows {value}, and only one value can stand here"
        raise ValueError(f"{text!r}: {reason}")
    return value


def parse_sum(text: str, kinds: Mapping[str, type[V]]) -> tuple[tuple[float, V], ...]:
    """Return the (weight, value) pairs of `0.9*a(x=1) + 0.1*b`; a weight that is left out is 1.

    Raises ValueError with a sentence; weights are finite and > 0.
    """
    terms: list[tuple[float, V]] = []
    rest = text
    while True:
        found = _NUMBER.match(rest)
        weight = float(found.group(1)) if found else 1.0
        if found and not found.group(2):
            raise ValueError(f"{text!r}: expected * after the weight {found.group(1)}, as in 0.5*{min(kinds)}")
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"{text!r}: the weight {weight:g} must be > 0; leave the term out instead")
        value, rest = _parse_call(rest[found.end() :] if found else rest, kinds)
        terms.append((weight, value))
        if not rest:
            return tuple(terms)
        if not rest.startswith("+"):
            reason = _NEVER_CLOSED if _is_open(rest) else f"expected + between terms, found {rest!r}"
            raise ValueError(f"{text!r}: {reason}")
        rest = rest[1:]
        if not rest.strip():
            raise ValueError(f"{text!r}: there is no term after the last +")


def format_sum(terms: tuple[tuple[float, Value], ...]) -> str:
    """Return the text form of weighted values; inverse of `parse_sum`."""
    return " + ".join(str(value) if weight == 1.0 else f"{number(weight)}*{value}" for weight, value in terms)


def _parse_call(text: str, kinds: Mapping[str, type[V]]) -> tuple[V, str]:
    found = _CALL.match(text)
    name, inside = (found.group(1), found.group(2) or "") if found else (text.strip(), "")
    if found is None or name not in kinds:
        near = difflib.get_close_matches(name.partition("(")[0].lower(), kinds, n=1)
        raise ValueError(f"{name!r} is none of {_names(kinds)}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return _build(kinds[name], inside), text[found.end() :]


def _build(kind: type[V], inside: str) -> V:
    types = get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind)]
    given: dict[str, Any] = {}
    for piece in filter(str.strip, inside.split(",")):
        found = _PARAMETER.fullmatch(piece)
        if not found:
            raise ValueError(f"{kind.NAME}: {piece.strip()!r} is not of the form parameter=value")
        name, raw = found.groups()
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(known) or 'none'}"
            raise ValueError(f"{kind.NAME} has no parameter {name!r}{hint}")
        if name in given:
            raise ValueError(f"{kind.NAME}: {name} is given twice")
        given[name] = _converted(raw, types[name], f"{kind.NAME}.{name}")
    return kind(**given)


def _converted(raw: str, wanted: Any, name: str) -> Any:
    options = get_args(wanted) if get_origin(wanted) is not None and get_origin(wanted) is not Literal else (wanted,)
    if raw == "none" and type(None) in options:
        return None
    for option in options:
        if get_origin(option) is Literal:
            if raw in get_args(option):
                return raw
            raise ValueError(f"{name} is {raw!r}; it must be one of {', '.join(map(str, get_args(option)))}")
        if option is bool and raw in ("true", "false"):
            return raw == "true"
        if option is str:
            return raw
        if option in (int, float):
            try:
                value = option(raw)
            except ValueError:
                raise ValueError(
                    f"{name} is {raw!r}; it must be {'a whole number' if option is int else 'a number'}"
                ) from None
            if not math.isfinite(value):
                raise ValueError(f"{name} is {raw!r}; it must be finite")
            return value
    raise ValueError(f"{name} cannot be {raw!r}")


def _is_open(rest: str) -> bool:
    return rest.startswith("(") and ")" not in rest


def _names(kinds: Mapping[str, Any]) -> str:
    return ", ".join(sorted(kinds))
