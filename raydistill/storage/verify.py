"""Whether a run root still holds what was committed to it: every object that a manifest names is there, with the size and
the SHA-256 that the manifest gives, and every manifest, receipt and CURRENT is what was sealed. Nothing is changed.

Objects are read from the store itself, never from the local cache. Safe beside running stages and gc: what is missing is
looked up again, and what the document that named it no longer needs is no damage. Memory: the listing of one artifact or
index, and a block of 1 MiB a thread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from raydistill.errors import CorruptObjectError, StorageError
from raydistill.progress import Advance, track
from raydistill.storage.hashing import unsealed
from raydistill.storage.inventory import Holding, NamedObject, holdings, in_parallel, named_objects, role_of
from raydistill.storage.store import ObjectInfo, ObjectStore, open_store

_BLOCK = 1 << 20
EVERYTHING = ("artifacts/", "indexes/", "cache/", "runs/")
ARTIFACTS = ("artifacts/",)


def index_prefix(name: str) -> str:
    """Return the key prefix of everything that an index has."""
    return f"indexes/{name}/"


@dataclass(frozen=True, slots=True)
class Damage:
    """One object that is not as it was committed.

    Attributes:
        key: relative to the run root.
        problem: what is wrong with it.
        remedy: what to do.
    """

    key: str
    problem: str
    remedy: str


@dataclass
class Verification:
    """What a look at a root found.

    Attributes:
        objects: documents and objects looked at. size: their bytes, as far as they were read.
        damages: in the order of keys.
    """

    objects: int = 0
    size: int = 0
    damages: list[Damage] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Check:
    """An object to look at. `binding`: it must be there, since a manifest promises it; `namer` is that document."""

    named: NamedObject
    namer: str
    binding: bool


def verify(root: str, prefixes: Sequence[str] = EVERYTHING, quick: bool = False) -> Verification:
    """Look at everything under some key prefixes of a run root, or with `quick` at existence and sizes only.

    Raises StorageError when the store cannot be read, or nothing lies under one of the prefixes that was asked for.
    """
    store = open_store(root)
    total = sum(sum(1 for _ in store.list(prefix)) for prefix in prefixes)
    if not total:
        raise StorageError(
            f"{store.root} holds nothing under {', '.join(prefixes)}; check the root, and the name of the index"
        )
    found = Verification()
    with track("verify", total, "objects") as advance:
        for prefix in prefixes:
            for holding in holdings(store, prefix):
                _verify_holding(store, holding, quick, found, advance)
    found.damages.sort(key=lambda damage: damage.key)
    return found


def _verify_holding(store: ObjectStore, holding: Holding, quick: bool, found: Verification, advance: Advance) -> None:
    documents: dict[str, dict[str, object]] = {}
    keys = [key for key in holding.objects if role_of(key) != "object"]
    if quick:  # receipts matter to unfinished work only, and there are as many as objects
        keys = [key for key in keys if role_of(key) != "receipt"]
    for key, document in in_parallel(partial(_document, store), keys):
        if isinstance(document, Damage):
            found.damages.append(document)
        elif document is not None:
            documents[key] = document
        found.objects += 1
        found.size += holding.objects[key].size
    found.damages += _misplaced(store, holding, documents)
    checks = list(_checks(holding, documents))

    def look(check: _Check) -> tuple[int, Damage | None]:
        # What an artifact names of an index is looked at in full with the index.
        if quick or not check.named.key.startswith(holding.prefix):
            return _sizes(store, holding, check)
        return _content(store, check)

    for check, (read, damage) in in_parallel(look, checks):
        found.objects += 1
        found.size += read
        advance(check.named.key in holding.objects, f"{found.size / 1e9:.1f} GB")
        if damage is not None:
            found.damages.append(damage)
    advance(len(holding.objects) - len({check.named.key for check in checks} & holding.objects.keys()))


def _document(store: ObjectStore, key: str) -> dict[str, object] | Damage | None:
    """Return what a sealed document says; None when it was removed since it was listed."""
    try:
        return unsealed(store.read(key), f"{store.root}/{key}")
    except CorruptObjectError:
        return Damage(key, "its content is not what was sealed", _remedy(key))
    except StorageError:
        if store.info(key) is None:
            return None
        raise


def _checks(holding: Holding, documents: dict[str, dict[str, object]]) -> Iterator[_Check]:
    """Yield the objects that a holding's documents name, each once, manifests before receipts.

    What only a receipt or the state of a checkpoint names need not be there: the part counts as not made, the upload as
    not finished. Being there it must be whole, since whoever resumes takes it as it is.
    """
    seen: set[NamedObject] = set()
    for role in ("manifest", "receipt"):
        for key in sorted(documents):
            if role_of(key) != role:
                continue
            for named in _named(holding, key, documents[key]):
                if named not in seen:
                    seen.add(named)
                    yield _Check(named, key, role == "manifest" and holding.kind != "checkpoint")
    if holding.kind == "teacher cache":
        for key, info in holding.objects.items():
            digest = key.rpartition("/")[2].removesuffix(".parquet")
            yield _Check(NamedObject(key, info.size, digest), key, binding=False)


def _named(holding: Holding, key: str, document: dict[str, object]) -> Iterator[NamedObject]:
    for named in named_objects(document):
        # A checkpoint names its files by name, since Ray moves it.
        yield NamedObject(holding.prefix + named.key, named.size, named.sha256) if holding.kind == "checkpoint" else named


def _sizes(store: ObjectStore, holding: Holding, check: _Check) -> tuple[int, Damage | None]:
    info = holding.objects.get(check.named.key)
    if info is None or info.size != check.named.size:
        info = store.info(check.named.key)  # what was put after the listing
    return 0, _judged(store, check, info, None)


def _content(store: ObjectStore, check: _Check) -> tuple[int, Damage | None]:
    """Hash an object and return how many bytes were read, and the damage."""
    digest, size, key = hashlib.sha256(), 0, check.named.key
    try:
        with store.open(key) as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
                size += len(block)
    except CorruptObjectError as error:
        return size, Damage(key, f"the store itself finds it damaged ({error})", _remedy(key))
    except OSError as error:
        return size, Damage(key, f"it cannot be read ({error.strerror or error})", _remedy(key))
    except StorageError:
        info = store.info(key)
        if info is not None:
            raise
        return 0, _judged(store, check, None, None)
    return size, _judged(store, check, ObjectInfo(key, size, "", 0.0), digest.hexdigest())


def _judged(store: ObjectStore, check: _Check, info: ObjectInfo | None, sha256: str | None) -> Damage | None:
    named = check.named
    if info is None:
        gone = not check.binding or store.info(check.namer) is None
        return None if gone else Damage(named.key, f"it is missing; {check.namer} names it", _remedy(named.key))
    if info.size != named.size:
        return Damage(named.key, f"it has {info.size} bytes instead of {named.size}", _remedy(named.key))
    if sha256 is not None and sha256 != named.sha256:
        return Damage(named.key, "its bytes do not have the SHA-256 that was committed", _remedy(named.key))
    return None


def _misplaced(store: ObjectStore, holding: Holding, documents: dict[str, dict[str, object]]) -> list[Damage]:
    """Return what does not fit together: a manifest under another's key, a CURRENT that is lost or names nothing."""
    if holding.kind not in ("artifact", "index"):
        return []
    damages = []
    manifests = [key for key in documents if role_of(key) == "manifest"]
    for key in manifests:
        own = _own_key(holding, documents[key])
        if own != key:
            damages.append(Damage(key, f"it is the manifest of {own}", _remedy(key)))
    if holding.kind == "artifact":
        return damages
    current = f"{holding.prefix}CURRENT"
    if current in documents:
        named = _own_key(holding, documents[current])
        if named not in holding.objects and store.info(named) is None:
            damages.append(Damage(current, f"it names {named}, which is missing", _remedy(current)))
    elif manifests and store.info(current) is None:
        damages.append(Damage(current, f"it is missing, and there are {len(manifests)} versions", _remedy(current)))
    return damages


def _own_key(holding: Holding, document: dict[str, object]) -> str:
    """Return the key that a manifest must have by what it says; of CURRENT, the key of the manifest that it names."""
    if holding.kind == "index":
        return f"{holding.prefix}manifests/{str(document.get('version')).zfill(8)}.json"
    fingerprint = str(document.get("fingerprint"))[:16]
    return f"artifacts/{document.get('kind')}/{document.get('name')}-{fingerprint}/_manifest.json"


def _remedy(key: str) -> str:
    """Return what makes a damaged object good again."""
    pieces = key.split("/")
    folder = key.rpartition("/")[0]
    if role_of(key) == "receipt":
        return "delete it; if its stage has not finished, run it again: this part alone is made anew"
    if pieces[0] == "artifacts":
        return f"restore it from a copy, or delete {'/'.join(pieces[:3])}/ and run the stage that makes it"
    if pieces[0] == "cache":
        return "nothing: its stage removes it and asks the teacher again"
    if pieces[0] == "runs":
        return f"delete {folder}/: training goes on from an earlier checkpoint, or anew"
    if role_of(key) == "CURRENT":
        return f"delete it if it is there, then raydistill rollback ROOT {pieces[1]} --to VERSION"
    if role_of(key) == "manifest":
        return "restore it from a copy, or delete it, roll back if it was current, and run the index stage again"
    return "restore it from a copy, or delete it and run the index stage again, which makes the same bytes anew"
