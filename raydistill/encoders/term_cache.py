"""What a counter of terms is made of, kept in this machine's cache: the first process that loads a tokenizer pays for it.

transformers imports torch on the way to any tokenizer: 2.5 s and 200 MB of every worker that only counts terms, for what the
`tokenizers` backend does alone. Entries are named by the content of the tokenizer's files and the versions of both packages,
so one is never older than what it stands for. A cache that cannot be read or written costs time and no more.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import uuid
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from raydistill.config import StudentConfig
from raydistill.encoders.lexical import TermCounter
from raydistill.model_source import model_identity, resolve_model
from raydistill.storage.cache import default_cache

_FORMAT = 1
_COMMIT = re.compile(r"[0-9a-f]{40}")

logger = logging.getLogger(__name__)


def entry(student: StudentConfig, files: tuple[str, ...]) -> Path | None:
    """Return where the counter of a student's terms is kept, or would be; None where nothing names its content.

    That is so for code of the model's own, and for a hub id without the commit as its revision.

    Args:
        files: patterns of the files in a model's folder that decide about its tokenizer.
    """
    if student.trust_remote_code:
        return None
    is_here = Path(resolve_model(student.model, "student.model")).is_dir()
    if not is_here and not _COMMIT.fullmatch(student.revision or ""):
        return None
    identity = model_identity(student.model, student.revision, files, "student.model")
    parts = [_FORMAT, identity, version("transformers"), version("tokenizers")]
    name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return default_cache().directory / "terms" / f"{name}.json"


def read(path: Path) -> TermCounter | None:
    """Return the counter that is kept at `path`; None where there is none, or a file with other content than was written."""
    try:
        digest, _, content = path.read_text(encoding="utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    if digest != _digest(content):
        return None
    return TermCounter.from_json(json.loads(content))


def write(path: Path, counter: TermCounter) -> None:
    """Keep a counter at `path`, whole or not at all."""
    content = json.dumps(counter.to_json())
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.write_text(f"{_digest(content)}\n{content}", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        logger.debug("terms are not kept at %s: %s", path, error)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()
