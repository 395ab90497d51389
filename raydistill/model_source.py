"""Where a model comes from: a hub id, a folder, or a folder inside an installed Python package; and its identity."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from raydistill.config.fields import is_encoder_address
from raydistill.errors import ConfigError, StorageError, first_line

_PACKAGE = "package:"
_WHOLE = 256 << 20
_BLOCK = 1 << 20
_COUNT_FROM_PADDING = frozenset(
    {
        "camembert",
        "data2vec-text",
        "longformer",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)
"""Model types whose first position is the one after the padding id: so many rows of their table are no text's."""


def resolve_model(source: str, field: str = "model") -> str:
    """Return what transformers can load: the folder of `package:NAME/FOLDER`, that of a finished student or document
    encoder at its address ROOT/artifacts/student/NAME-ID (fetched once a machine), and any other source as it is.

    Args:
        source: hub id, folder, or `package:NAME/FOLDER`.
        field: the configuration field that named it, for messages.

    Raises ConfigError when a path or package does not exist on this machine.
    """
    if source.startswith(_PACKAGE):
        return _package_folder(source, field)
    if is_encoder_address(source) and not (Path(source) / "config.json").is_file():
        return _student_folder(source, field)
    if source.startswith(("/", ".", "~")) and not Path(source).is_dir():
        raise ConfigError(f"{field}: the folder {source!r} does not exist here; it must be on every node, or give a hub id")
    return source


def _student_folder(source: str, field: str) -> str:
    # Imported here: other models need no store.
    from raydistill.storage.students import laid_out, student_artifact

    try:
        student = student_artifact(source)
    except StorageError as error:
        raise ConfigError(f"{field}: {error}") from error
    assert student is not None
    return str(laid_out(student))


def _package_folder(source: str, field: str) -> str:
    package, _, inner = source[len(_PACKAGE) :].partition("/")
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"{field}: {source!r} needs the Python package {package!r}; pip install it on every node")
    folder = Path(spec.submodule_search_locations[0]) / inner
    if not folder.is_dir():
        raise ConfigError(f"{field}: {source!r}: the package {package!r} has no folder {inner!r}")
    return str(folder)


def model_config(model: str, revision: str | None, trust_remote_code: bool, field: str = "student.model") -> Any:
    """Return the Hugging Face configuration of a hub id or folder; ConfigError naming `field` when it cannot be read."""
    from transformers import AutoConfig

    folder = resolve_model(model, field)
    try:
        return AutoConfig.from_pretrained(folder, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{field}: {model!r} has no readable config.json: {first_line(error)}") from error


def check_length(config: Any, max_tokens: int, source: str, field: str) -> None:
    """Raise ConfigError naming `field` when a model has fewer positions than `max_tokens`.

    Args:
        config: the model's Hugging Face configuration; one that states no number of positions passes.
        source: what the model is called in the message.
    """
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None:
        return
    if config.model_type in _COUNT_FROM_PADDING and config.pad_token_id is not None:
        limit -= config.pad_token_id + 1
    if max_tokens > limit:
        raise ConfigError(
            f"{field} is {max_tokens}, but {source!r} reads at most {limit} tokens; lower it to {limit}, or take a model "
            "that reads more"
        )


def model_identity(
    source: str, revision: str | None = None, patterns: Iterable[str] = ("**/*",), field: str = "model"
) -> str:
    """Return what identifies a model for fingerprints, wherever it lies.

    A local folder counts by the names, sizes and bytes of its matching files; of files over 256 MiB, 64 blocks of 1 MiB
    spread evenly stand for all (a fine-tuned model differs everywhere). A hub id counts by id and revision: name a commit
    in `revision` for results that stay the same. Raises ConfigError as `resolve_model`.
    """
    folder = Path(resolve_model(source, field))
    if not folder.is_dir():
        return f"{source}@{revision or 'main'}"
    return _folder_identity(folder, tuple(patterns))


def _folder_identity(folder: Path, patterns: tuple[str, ...]) -> str:
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    digest = hashlib.sha256()
    for path in files:
        name = path.relative_to(folder).as_posix()
        if any(part.startswith(".") or part == "__pycache__" for part in Path(name).parts):
            continue
        size = path.stat().st_size
        digest.update(f"{name}\0{size}\0".encode())
        step = _BLOCK if size <= _WHOLE else (size - _BLOCK) // 63
        with path.open("rb") as stream:
            for offset in range(0, size, step):
                stream.seek(offset)
                digest.update(stream.read(_BLOCK))
    return f"sha256:{digest.hexdigest()}"
