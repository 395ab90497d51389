"""Checkpoints on disk: whole float32 tensors by name and one JSON of state, with nothing of the layout they came from.

    tensors-{writer:05d}-{number:03d}.safetensors    parameter/NAME, exp_avg/NAME, exp_avg_sq/NAME
    state.json                                       what else there is to continue from, and a catalogue of the tensors

Several workers write files of their own into one folder; the sealed state names every file with its size and SHA-256 and
every tensor with its shape, so a checkpoint that is cut short, damaged, or belongs to another training is refused before
anything is changed. No pickle: a checkpoint from anywhere can be read safely. How tensors leave and enter DeepSpeed is in
`whole_state`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from raydistill.errors import CorruptObjectError, TrainingError
from raydistill.storage.hashing import sealed, sha256_hex, unsealed

FORMAT_VERSION = 2
STATE_FILE = "state.json"
Contents = Literal["training", "parameters"]
_FILE_BYTES = 1 << 30


@dataclass(frozen=True)
class Catalogue:
    """What one or several writers wrote.

    Attributes:
        files: name -> (bytes, SHA-256 in hex).
        tensors: key -> (file, shape).
    """

    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)

    @staticmethod
    def joined(parts: Iterable[Catalogue]) -> Catalogue:
        """Return the catalogue of all writers together."""
        whole = Catalogue()
        for part in parts:
            whole.files.update(part.files)
            whole.tensors.update(part.tensors)
        return whole


def write_tensors(folder: Path, writer: int, tensors: Iterable[tuple[str, Tensor]]) -> Catalogue:
    """Write tensors into files of this writer, of about 1 GiB each, and return what was written.

    Args:
        folder: exists.
        writer: number of the worker, unique within the checkpoint.
        tensors: (key, float32 tensor on any device); held until their file is full, then let go.
    """
    catalogue = Catalogue()
    pending: dict[str, Tensor] = {}

    def flush() -> None:
        if not pending:
            return
        name = f"tensors-{writer:05d}-{len(catalogue.files):03d}.safetensors"
        save_file(pending, folder / name)
        catalogue.files[name] = ((folder / name).stat().st_size, sha256_hex(folder / name))
        catalogue.tensors.update({key: (name, tuple(tensor.shape)) for key, tensor in pending.items()})
        pending.clear()

    held = 0
    for key, tensor in tensors:
        pending[key] = tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
        held += tensor.numel() * 4
        if held >= _FILE_BYTES:
            flush()
            held = 0
    flush()
    return catalogue


def write_state(folder: Path, contents: Contents, fingerprint: str, catalogue: Catalogue, state: Mapping[str, Any]) -> None:
    """Complete a checkpoint: one writer, after all tensors.

    Args:
        contents: "training" to continue from, "parameters" to export.
        fingerprint: of the training; only the same training may read it.
        catalogue: of all writers.
        state: JSON-able; returned by `Checkpoint.state`.
    """
    record = {
        "format_version": FORMAT_VERSION,
        "contents": contents,
        "fingerprint": fingerprint,
        # As text: a measure before the first validation is an infinity, which canonical JSON does not have.
        "state": json.dumps(dict(state)),
        "files": [{"key": name, "size": size, "sha256": sha256} for name, (size, sha256) in catalogue.files.items()],
        "tensors": {key: {"file": file, "shape": shape} for key, (file, shape) in catalogue.tensors.items()},
    }
    (folder / STATE_FILE).write_bytes(sealed(record))


class Checkpoint:
    """A checkpoint that was found whole.

    Attributes:
        folder: where it lies.
        state: what `write_state` was given.
    """

    def __init__(self, folder: Path, contents: Contents, fingerprint: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Open a checkpoint and verify it to the byte: whoever opens it is about to train on what it holds.

        Args:
            contents, fingerprint: what it must be.
            shapes: key -> shape of every tensor that it must hold, no more and no less.

        Raises TrainingError saying what is missing, cut short, damaged, or of another training.
        """
        self.folder = folder
        record = _read_record(folder)
        if record["fingerprint"] != fingerprint or record["contents"] != contents:
            raise _unusable(
                folder,
                f"it holds the {record['contents']} of training {record['fingerprint'][:16]}, and {contents} of "
                f"{fingerprint[:16]} is needed",
            )
        self.state: dict[str, Any] = json.loads(record["state"])
        self._file_of = {key: entry["file"] for key, entry in record["tensors"].items()}
        self._check_names({key: tuple(entry["shape"]) for key, entry in record["tensors"].items()}, shapes)
        self._handles = {each["key"]: self._opened(each["key"], each["size"], each["sha256"]) for each in record["files"]}

    def tensor(self, key: str) -> Tensor:
        """Return a tensor, float32 on the CPU. Raises TrainingError when its file does not hold what the state says."""
        try:
            value: Tensor = self._handles[self._file_of[key]].get_tensor(key)
        except (SafetensorError, KeyError) as error:
            raise _unusable(self.folder, f"{self._file_of[key]} does not hold {key} ({error})") from None
        return value

    def _check_names(self, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
        missing, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
        if missing or unknown:
            what = f"it lacks {missing[0]}" if missing else f"it holds {unknown[0]}, which the student does not have"
            raise _unusable(self.folder, f"{what} ({len(missing)} tensors missing, {len(unknown)} unknown)")
        for key, shape in wanted.items():
            if found[key] != tuple(shape):
                raise _unusable(self.folder, f"{key} has the shape {found[key]} there and {tuple(shape)} in the student")

    def _opened(self, name: str, size: int, sha256: str) -> Any:
        path = self.folder / name
        if not path.is_file():
            raise _unusable(self.folder, f"{name} is missing")
        if path.stat().st_size != size:
            raise _unusable(self.folder, f"{name} has {path.stat().st_size} bytes instead of {size}")
        if sha256_hex(path) != sha256:
            raise _unusable(self.folder, f"{name} does not have the SHA-256 that was written")
        try:
            return safe_open(path, framework="pt")
        except SafetensorError as error:
            raise _unusable(self.folder, f"{name} is no safetensors file ({error})") from None


def files_of(folder: Path, writer: int) -> Iterator[Path]:
    """Yield the tensor files in a folder that this writer wrote, in order of name."""
    yield from sorted(folder.glob(f"tensors-{writer:05d}-*.safetensors"))


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / STATE_FILE
    if not path.is_file():
        raise _unusable(folder, f"{STATE_FILE} is missing")
    try:
        record = unsealed(path.read_bytes(), path.name)
        version = record["format_version"]
        if version != FORMAT_VERSION:
            raise _unusable(folder, f"it has format {version} and this release reads {FORMAT_VERSION}")
        _ = record["contents"], record["fingerprint"], record["state"], record["files"], record["tensors"]
    except (CorruptObjectError, KeyError) as error:
        raise _unusable(folder, f"{STATE_FILE} is damaged ({error})") from None
    return record


def _unusable(folder: Path, reason: str) -> TrainingError:
    return TrainingError(
        f"the checkpoint in {folder} cannot be used: {reason}; remove it to continue from an earlier one, or start anew by "
        "removing the training's folder under runs/"
    )
