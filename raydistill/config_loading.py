"""From a YAML file and dotted overrides to a validated configuration; every mistake becomes a sentence before Ray starts."""

from __future__ import annotations

import difflib
import json
import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from raydistill.config import (
    BiEncoderScorerConfig,
    CommandLineValue,
    ConversationSource,
    CrossEncoderScorerConfig,
    DistillConfig,
    ExactEngine,
    LearnedDocumentsConfig,
    LexicalDocumentsConfig,
    LlmScorerConfig,
    OpenAiTeacherConfig,
    PassageSource,
    RecordedTeacherConfig,
    SeismicEngine,
    SpladeDocumentsConfig,
    TransformersTeacherConfig,
    ValidationShare,
    VllmTeacherConfig,
)
from raydistill.errors import ConfigError

# Names that pydantic puts into an error's place for the member of a union that was tried, and which section each is.
_MEMBERS: dict[str, type[BaseModel]] = {
    "recorded": RecordedTeacherConfig,
    "transformers": TransformersTeacherConfig,
    "openai": OpenAiTeacherConfig,
    "vllm": VllmTeacherConfig,
    "lexical": LexicalDocumentsConfig,
    "splade": SpladeDocumentsConfig,
    "learned": LearnedDocumentsConfig,
    "cross-encoder": CrossEncoderScorerConfig,
    "bi-encoder": BiEncoderScorerConfig,
    "llm": LlmScorerConfig,
    "exact": ExactEngine,
    "seismic": SeismicEngine,
    "conversation source": ConversationSource,
    "passage source": PassageSource,
    "validation share": ValidationShare,
}
M = TypeVar("M", bound=BaseModel)
_CREDENTIALS = re.compile(r"://[^/@\s]+@")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> DistillConfig:
    """Read a YAML configuration, apply `dotted.field=value` overrides, substitute variables, validate.

    The top-level mapping `vars` defines `${name}` for use in any string; `vars.name=value` overrides it. Relative
    locations start at the file's folder, those in overrides at the current directory.

    Raises ConfigError naming file, field, value and what would be right.
    """
    path = Path(path).expanduser().absolute()
    tree = read_tree(path)
    if "tune" in tree and "base" in tree:
        raise ConfigError(f"{path} is a study; run it with `raydistill tune`, or name its base here")
    return build_config(tree, overrides, folder=path.parent, place=str(path))


def read_tree(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds. Raises ConfigError when there is none."""
    try:
        # The loader is PyYAML's safe one, which takes the last of two equal keys without a word.
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {path}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, such as data: and student:")
    return tree


def build_config(
    tree: Mapping[str, Any], overrides: Sequence[str] = (), folder: Path | None = None, place: str = "the configuration"
) -> DistillConfig:
    """Validate a tree of plain values with overrides applied; see `load_config`."""
    merged = plain_tree(tree)
    for override in overrides:
        apply_override(merged, override)
    variables = merged.pop("vars", None) or {}
    if not isinstance(variables, dict):
        raise ConfigError(f"{place}: vars is {variables!r}; it must be a mapping of names to values")
    empty = [name for name, value in variables.items() if value is None or value == ""]
    if empty:
        raise ConfigError(f"{place}: vars.{empty[0]} has no value; give it one")
    defined = tree.get("vars") or {}
    unused = sorted(set(variables) - set(defined) - set(_VARIABLE.findall(json.dumps([merged, variables]))))
    if unused:
        close = difflib.get_close_matches(unused[0], defined, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "leave it out"
        raise ConfigError(f"{place}: nothing uses vars.{unused[0]}, so it would change nothing; {hint}")
    return validated(DistillConfig, _substitute(merged, _resolved(variables, place), place), folder, place)


def plain_tree(node: Any) -> Any:
    """Return a copy of a tree as JSON could hold it; strings of the command line stay what they are."""
    if isinstance(node, Mapping):
        return {
            key if isinstance(key, str) else json.dumps(key, default=str): plain_tree(value) for key, value in node.items()
        }
    if isinstance(node, (list, tuple)):
        return [plain_tree(value) for value in node]
    return node if node is None or isinstance(node, (bool, int, float, str)) else str(node)


def validated(kind: type[M], tree: Any, folder: Path | None, place: str) -> M:
    """Return the section of a kind that a tree of plain values describes.

    Relative locations start at `folder`. Raises ConfigError with a sentence for every mistake.
    """
    try:
        return kind.model_validate(tree, context={"folder": folder})
    except ValidationError as error:
        raise ConfigError(f"{place}: " + "; ".join(_sentence(problem, kind) for problem in _causes(error))) from None


def build_section(
    kind: type[M], tree: Mapping[str, Any], overrides: Sequence[str], place: str, folder: Path | None = None
) -> M:
    """Return a section from a command's arguments: plain values, and `field=value` overrides as of a configuration.

    Relative locations of the tree start at `folder` (None: the current directory), those of overrides at the current
    directory. Raises ConfigError, beginning with `place`.
    """
    merged = plain_tree(tree)
    for override in overrides:
        apply_override(merged, override)
    return validated(kind, merged, folder or Path.cwd(), place)


def set_field(tree: dict[str, Any], dotted: str, value: Any, place: str) -> None:
    """Set `section.field` of a tree of plain values; items of lists are named by `name` or number.

    Raises ConfigError, beginning with `place`, when the way there leads through a plain value or an unknown item.
    """
    node: Any = tree
    *parents, last = dotted.split(".")
    for depth, key in enumerate(parents):
        node = _child(node, key, ".".join(parents[: depth + 1]), place)
    if isinstance(node, list):
        node[_position(node, last, place)] = value
    else:
        node[last] = value


def dump_config(config: DistillConfig) -> str:
    """Return the resolved configuration as YAML that `load_config` reads back to an equal value."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set the field that `section.field=value` names. Raises ConfigError when it has another form."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"override {override!r} must have the form section.field=value, such as train.epochs=2")
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError:
        value = text
    set_field(tree, dotted, _from_command_line(value), f"override {override!r}")


def _child(node: Any, key: str, dotted: str, place: str) -> Any:
    if isinstance(node, list):
        return node[_position(node, key, place)]
    if key == "0" and key not in node:
        return node  # a single item stands for a list of one
    if node.get(key) is None:
        node[key] = {}
    if not isinstance(node[key], (dict, list)):
        raise ConfigError(f"{place}: {dotted} is a plain value and has no fields")
    return node[key]


def _position(items: list[Any], key: str, place: str) -> int:
    if key.isdigit() and int(key) < len(items):
        return int(key)
    named = [n for n, item in enumerate(items) if isinstance(item, dict) and item.get("name") == key]
    if named:
        return named[0]
    raise ConfigError(f"{place}: {key!r} is neither the name nor the number of one of the {len(items)} items")


def _from_command_line(value: Any) -> Any:
    if isinstance(value, str):
        return CommandLineValue(value)
    if isinstance(value, list):
        return [_from_command_line(item) for item in value]
    if isinstance(value, dict):
        return {key: _from_command_line(item) for key, item in value.items()}
    return value


def _resolved(variables: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the variables with those that they use themselves put in. Raises ConfigError when they go round in a circle."""
    found = dict(variables)
    for _ in found:
        if not any(isinstance(value, str) and _VARIABLE.search(value) for value in found.values()):
            return found
        found = {name: _substitute(value, found, f"{place}: vars.{name}") for name, value in found.items()}
    circular = [name for name, value in found.items() if isinstance(value, str) and _VARIABLE.search(value)]
    if circular:
        raise ConfigError(
            f"{place}: vars.{circular[0]} is {variables[circular[0]]!r}, which leads back to itself; break the circle"
        )
    return found


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses a mapping with two equal keys."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        # Not where values are made: there, merged mappings (<<) have put their keys beside those that replace them.
        node = super().compose_mapping_node(anchor)
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key.value, str) and seen.setdefault(key.value, line) != line:
                raise yaml.composer.ComposerError(
                    None,
                    None,
                    f"{key.value} stands there twice, in lines {seen[key.value]} and {line}; keep one",
                    key.start_mark,
                )
        return node


def _substitute(node: Any, variables: Mapping[str, Any], place: str) -> Any:
    if isinstance(node, dict):
        return {key: _substitute(value, variables, place) for key, value in node.items()}
    if isinstance(node, list):
        return [_substitute(value, variables, place) for value in node]
    if not isinstance(node, str):
        return node
    kind: type[str] = CommandLineValue if isinstance(node, CommandLineValue) else str
    for name in _VARIABLE.findall(node):
        if name not in variables:
            raise ConfigError(f"{place}: {node!r} uses ${{{name}}}, which vars does not define; add vars.{name}=VALUE")
        if isinstance(variables[name], CommandLineValue):
            kind = CommandLineValue
    return kind(_VARIABLE.sub(lambda match: str(variables[match[1]]), node))


def _causes(error: ValidationError) -> list[Any]:
    """Return the problems of an error without those that follow from others: a list is short by its bad items."""
    problems: list[Any] = list(error.errors())
    places = [problem["loc"] for problem in problems]
    return [
        problem
        for problem in problems
        if problem["type"] != "too_short"
        or not any(len(place) > len(problem["loc"]) and place[: len(problem["loc"])] == problem["loc"] for place in places)
    ]


def _sentence(problem: Any, root: type[BaseModel]) -> str:
    place = problem["loc"]
    parts, _ = _walk(place, root)
    field, kind, context = ".".join(str(part) for part in parts), problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        siblings = _field_names(place[:-1], root)
        close = difflib.get_close_matches(str(parts[-1]), siblings, n=1, cutoff=0.7)
        hint = f"did you mean {close[0]!r}?" if close else f"the fields here are {', '.join(siblings)}"
        return f"{field}: there is no such field; {hint}"
    if kind == "union_tag_invalid":
        expected = context["expected_tags"].replace("'", "")
        return f"{field}.{context['discriminator'].strip(chr(39))}: {context['tag']!r} is none of {expected}"
    if kind == "union_tag_not_found":
        name = context["discriminator"].strip(chr(39))
        return f"{field}.{name}: this field is required; add {name}: {' or '.join(_tags(place, root))}"
    if kind in ("tuple_type", "list_type"):
        shown = "it has no value" if problem["input"] is None else f"such as [{problem['input']}]"
        return f"{field}: must be a list, {shown}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        names = _field_names(place, root)
        return f"{field}: must be a section with fields ({', '.join(names)}); the value is {problem['input']!r}"
    if kind == "missing":
        return f"{field}: this field is required; add it"
    message = problem["msg"].removeprefix("Value error, ")
    if kind == "too_short":
        message = f"must hold at least {context['min_length']}"
    if kind == "string_pattern_mismatch":
        message = "must be a name: up to 63 letters, digits, '.', '_' and '-', the first a letter or a digit"
    if not field:
        return str(message)  # of the whole configuration: it names its fields itself
    # What may be a secret is not repeated, and a section's values would only repeat what the sentence says.
    is_long = isinstance(problem["input"], dict) or len(str(problem["input"])) > 80
    if kind == "secret" or (kind == "value_error" and is_long):
        return f"{field}: {message}"
    return f"{field}: {message}; the value is {_CREDENTIALS.sub('://***@', repr(problem['input']))}"


def _field_names(path: Sequence[Any], root: type[BaseModel]) -> list[str]:
    """Return the field names of the section at a path of names, members of unions and positions from the root."""
    return sorted({name for model in _sections(path, root) for name in model.model_fields})


def _tags(path: Sequence[Any], root: type[BaseModel]) -> list[str]:
    """Return the names of the union's members at a path."""
    sections = _sections(path, root)
    return [name for name, model in _MEMBERS.items() if model in sections]


def _sections(path: Sequence[Any], root: type[BaseModel]) -> list[type[BaseModel]]:
    return _walk(path, root)[1]


def _walk(path: Sequence[Any], root: type[BaseModel]) -> tuple[list[Any], list[type[BaseModel]]]:
    """Return a path as the user wrote it, without the members of unions that pydantic tried, and the sections there."""
    models: list[type[BaseModel]] = [root]
    written: list[Any] = []
    for part in path:
        # A member may be called as one of its fields is: an llm scorer has a field llm.
        if part in _MEMBERS and _MEMBERS[part] in models and len(models) > 1:
            models = [_MEMBERS[part]]
            continue
        written.append(part)
        if not isinstance(part, int):
            fields = [model.model_fields[part] for model in models if part in model.model_fields]
            models = [inner for field in fields for inner in _models_in(field.annotation)]
    return written, models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, tuple, list) or hasattr(annotation, "__metadata__"):
        return [model for argument in get_args(annotation) for model in _models_in(argument)]
    return []
