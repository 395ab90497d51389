"""The names of terms: what stands for term 1037 in a format that names terms by strings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raydistill.encoders.documents import load_tokenizer
from raydistill.encoders.lexical import terms_by_id
from raydistill.errors import DataError
from raydistill.storage.files import read_input

_FILE_SUFFIXES = (".txt", ".txt.gz", ".txt.bz2", ".txt.zst")


def term_names(source: str | None, vocabulary_size: int | None = None) -> list[str]:
    """Return the terms by id.

    Args:
        source: a text file (.txt, perhaps compressed) with one term a line, line n + 1 being term n; or a tokenizer's folder
            or hub id; None names every term by its id in decimal digits.
        vocabulary_size: how many there must be; ids that the source does not name are called `[no term N]`. None takes as
            many as the source names.

    Raises:
        DataError: the file names more terms than there are, or one twice; or there is neither source nor size.
        ConfigError: the tokenizer cannot be loaded. StorageError: the file cannot be read.
    """
    if source is None:
        if vocabulary_size is None:
            raise DataError("terms are named by their ids, and nothing says how many there are; give the vocabulary's size")
        return [str(term) for term in range(vocabulary_size)]
    if not source.endswith(_FILE_SUFFIXES):
        vocabulary = load_tokenizer(source, None, False, "terms").get_vocab()
        return terms_by_id(vocabulary, vocabulary_size or max(vocabulary.values()) + 1)
    names = read_input(source).decode("utf-8").split("\n")
    names = [name.removesuffix("\r") for name in (names[:-1] if names[-1] == "" else names)]
    if vocabulary_size is not None and len(names) > vocabulary_size:
        raise DataError(f"{source} names {len(names)} terms, but the vocabulary has {vocabulary_size}; give its own file")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{source}: the term {twice!r} stands there twice, so vectors cannot name it; correct the file")
    return names + [f"[no term {number}]" for number in range(len(names), vocabulary_size or 0)]


def check_names(names: Sequence[str], used: NDArray[np.bool_], forbidden: str, target: str) -> None:
    """Raise DataError when a term that some passage has contains a character that a format gives a meaning of its own.

    Args:
        used: bool [V].
        forbidden: characters; " " stands for any white space.
        target: the format's name, for the message.
    """
    for term in np.flatnonzero(used).tolist():
        name = names[term]
        spaced = " " in forbidden and name.split() != [name]
        if spaced or any(character in name for character in forbidden.replace(" ", "")):
            raise DataError(
                f"term {term} is {name!r}, and {target} reads terms without white space"
                f"{' and without any of ' + forbidden.strip() if forbidden.strip() else ''}; leave terms out to name terms "
                "by their ids"
            )
