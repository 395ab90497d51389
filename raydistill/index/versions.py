"""The versions of an index as an operator sees them: a list, and going back to one. Making versions is in `publish`."""

from __future__ import annotations

from dataclasses import dataclass

from raydistill.errors import StorageError
from raydistill.index.publish import IndexVersion, load_version, make_current, missing_objects
from raydistill.storage.hashing import unsealed
from raydistill.storage.inventory import named_objects, role_of
from raydistill.storage.store import open_store


@dataclass(frozen=True)
class ListedVersion:
    """A version and what else its manifest tells.

    Attributes:
        version: the version itself.
        is_current: whether CURRENT names it.
        size: bytes of all that it names; what it shares with another version counts for both.
        created: UTC time of the commit, ISO 8601.
    """

    version: IndexVersion
    is_current: bool
    size: int
    created: str


def list_versions(root: str, name: str) -> list[ListedVersion]:
    """Return the versions of an index, ascending. Raises StorageError when there is none, CorruptObjectError when one's
    manifest is damaged."""
    store = open_store(root)
    listed = []
    current = _current_number(root, name)
    for info in store.list(f"indexes/{name}/manifests/"):
        if role_of(info.key) == "manifest":
            document = unsealed(store.read(info.key), f"{store.root}/{info.key}")
            version = IndexVersion.from_json({**document, "root": root})
            sizes = {named.key: named.size for named in named_objects(document)}
            created = str(document["created"])
            listed.append(ListedVersion(version, version.version == current, sum(sizes.values()), created))
    if not listed:
        raise StorageError(f"{store.root}/indexes/{name} has no version; check root and name, or run the index stage")
    return listed


def roll_back(root: str, name: str, number: int) -> tuple[int | None, IndexVersion]:
    """Make a version the current one, older or newer than what is current now; return the number of that, and the version.

    It stays current until something new is published. Raises StorageError when there is no such version, or when something
    that it names is missing.
    """
    version = load_version(root, name, number)
    before = _current_number(root, name)
    missing = missing_objects(version)
    if missing:
        raise StorageError(
            f"version {number} of {name} cannot become current: {root}/{missing[0]} is missing or cut short; "
            f"raydistill verify {root} --index {name} tells what to do"
        )
    make_current(version, older=True)
    try:
        load_version(root, name, number)  # gc spares what is current; what it removed a moment before shows here
    except StorageError:
        if before is not None:
            make_current(load_version(root, name, before), older=True)
        raise
    return before, version


def _current_number(root: str, name: str) -> int | None:
    store, key = open_store(root), f"indexes/{name}/CURRENT"
    if store.info(key) is None:
        return None
    return int(unsealed(store.read(key), f"{store.root}/{key}")["version"])
