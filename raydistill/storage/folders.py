"""Folders as artifacts: a Hugging Face folder stored one part a file, and laid out again on another machine."""

from __future__ import annotations

import shutil
from pathlib import Path

from raydistill.storage.artifacts import Artifact, ArtifactWriter

# Part names hold no "/"; "=" is allowed in them and does not occur in the file names of models.
_SLASH = "="


def put_folder(writer: ArtifactWriter, folder: Path) -> list[str]:
    """Put every file below a local folder as a part and return the parts' names; committing is the caller's."""
    names = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix().replace("/", _SLASH)
            writer.put_part(name, path, suffix=path.suffix, rows=0)
            names.append(name)
    return names


def fetch_folder(artifact: Artifact, folder: Path) -> Path:
    """Lay the files of a committed folder artifact out below `folder`, verified, and return it."""
    for part in artifact.manifest().parts:
        path = folder / part.name.replace(_SLASH, "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.stat().st_size != part.size:
            shutil.copyfile(artifact.fetch(part), path)
    return folder
