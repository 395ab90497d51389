"""What commands that write to a run root share: the store is tried first, and its lease taken where that is asked for."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager


def add_writer_argument(parser: argparse.ArgumentParser) -> None:
    """Add --single-writer, for commands that have no configuration to say it."""
    parser.add_argument(
        "--single-writer",
        action="store_true",
        help="take the root's lease for it: for stores whose conditional writes do not work (see single_writer in the "
        "configuration)",
    )


@contextmanager
def writing_to(root: str, single_writer: bool, purpose: str) -> Iterator[None]:
    """Check a run root and hold it for writing. Raises StorageError when the store is unfit or another run has the lease."""
    from raydistill.storage.lease import writing
    from raydistill.storage.probe import check_root

    check_root(root, single_writer)
    with writing(root, single_writer, purpose):
        yield
