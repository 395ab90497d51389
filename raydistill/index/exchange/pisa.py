"""An index as PISA's own uncompressed collection, which `compress_inverted_index` and `create_wand_data` of PISA read.

All numbers are 32-bit little-endian; a sequence is a length and as many numbers.

    BASE.docs        the sequence of one number, the passages; then for each term the sequence of its passages' numbers
    BASE.freqs       for each term the sequence of its impacts, parallel to BASE.docs
    BASE.sizes       one sequence: each passage's sum of impacts
    BASE.terms       the terms, one a line, ascending by bytes, in the order of the sequences
    BASE.documents   the passages' external ids, one a line, by number

Memory: 8 bytes a passage of the index, and 24 bytes for each passage of the most frequent term; segments are mapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from raydistill.errors import DataError
from raydistill.index.exchange.ciff import passage_lengths, terms_in_order
from raydistill.index.exchange.quantise import Quantisation
from raydistill.index.exchange.stored import StoredPostings, windows
from raydistill.index.publish import IndexVersion
from raydistill.progress import Advance

SUFFIXES = (".docs", ".freqs", ".sizes", ".terms", ".documents")


def write_pisa(base: Path, version: IndexVersion, names: Sequence[str], quantised: Quantisation, advance: Advance) -> None:
    """Write the five files BASE.docs … BASE.documents of an index version.

    Args:
        names: of the terms, by id, without line breaks.
        advance: told of passages, each counted once.

    Raises DataError when the index has more passages than PISA can number.
    """
    if version.live >= 2**32:
        raise DataError(f"{version.uri} has {version.live} passages, and PISA numbers them by 32 bits")
    lengths = passage_lengths(version, quantised)
    postings = StoredPostings(version)
    order = terms_in_order(names, postings.document_frequency)
    with _file(base, ".docs") as docs, _file(base, ".freqs") as frequencies:
        np.array([1, version.live], dtype="<u4").tofile(docs)
        for term in order:
            passages, impacts = postings.of_term(term)
            for file, numbers in ((docs, passages), (frequencies, quantised.apply(impacts))):
                np.array([len(numbers)], dtype="<u4").tofile(file)
                numbers.astype("<u4").tofile(file)
    with _file(base, ".sizes") as sizes:
        np.array([version.live], dtype="<u4").tofile(sizes)
        lengths.astype("<u4").tofile(sizes)
    with _file(base, ".terms") as file:
        file.writelines(names[term].encode() + b"\n" for term in order)
    with _file(base, ".documents") as file:
        for entry in version.segments:
            for window in windows(version, entry):
                file.writelines(passage_id.encode() + b"\n" for passage_id in window.ids)
                advance(len(window.ids))


def _file(base: Path, suffix: str):  # type: ignore[no-untyped-def]
    return base.with_name(base.name + suffix).open("wb")
