"""The exceptions of raydistill: one type a domain, each message a sentence that says what, where and what to do."""

from __future__ import annotations


class RaydistillError(Exception):
    """Base of every error that raydistill raises on purpose; the command line prints it without a traceback."""


class ConfigError(RaydistillError):
    """A configuration field, value or combination that cannot work."""


class StorageError(RaydistillError):
    """An object store that is missing, refuses a request, or breaks its contract."""


class CorruptObjectError(StorageError):
    """A stored object whose bytes are not the ones that were committed."""


class DataError(RaydistillError):
    """Input data (corpus, conversations, qrels, rewrites) that cannot be used as it is."""


class TeacherError(RaydistillError):
    """A teacher that cannot be started or cannot answer at all (single bad rows are counted instead)."""


class ResourceError(RaydistillError):
    """A request for CPUs, GPUs or memory that the cluster can never satisfy."""


class TrainingError(RaydistillError):
    """A training run that cannot continue."""


class TuningError(RaydistillError):
    """A search over configurations that has no result."""


class UnavailableError(RaydistillError):
    """An index or a service that does not answer now; the same request may succeed later."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
