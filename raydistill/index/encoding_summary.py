"""What encoding a collection took: the counters of its segments' receipts, added up. Nothing here encodes or stores.

Policy for passages that are not as they should be: one that is too long is cut at the encoder's limit, one whose vector has
no term is indexed and never found, and an empty or malformed row is left out when the corpus is made (at most
data.max_bad_rows of them). All of them are counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from raydistill.encoders.interface import EncodingTally

Counters = Mapping[str, float]


def segment_counters(tally: EncodingTally, without_terms: int, worker_seconds: float) -> dict[str, float]:
    """Return the counters of one segment's receipt.

    Args:
        tally: of its passages.
        without_terms: passages whose vector is empty.
        worker_seconds: of its worker, since that was ready or had finished its previous segment.
    """
    return {**asdict(tally), "without_terms": without_terms, "worker_seconds": worker_seconds}


def encoding_summary(segments: Iterable[Counters], malformed: int) -> dict[str, Any]:
    """Return the sums of the segments' counters, with:

    malformed: rows of the input that the corpus leaves out.
    passages_per_second: of one worker, on average.
    padding_share: of the positions that the model computed; None for an encoder that computes none.
    waiting_share: of the workers' time, during which the model did not compute.

    Segments without counters, as releases before this one left them, are not in the sums.
    """
    total = segment_counters(EncodingTally(), 0, 0.0)
    for counters in segments:
        if "worker_seconds" in counters:
            total = {name: value + counters[name] for name, value in total.items()}
    seconds, padded = total["worker_seconds"], total["padded_tokens"]
    return {
        **total,
        "malformed": malformed,
        "passages_per_second": total["passages"] / seconds if seconds else None,
        "padding_share": 1 - total["tokens"] / padded if padded else None,
        "waiting_share": 1 - total["compute_seconds"] / seconds if seconds else None,
    }


def in_words(summary: Mapping[str, Any]) -> str:
    """Return the summary as a line for the log."""
    counted = (
        f"{summary['passages']:g} passages encoded: {summary['truncated']:g} cut at the encoder's limit, "
        f"{summary['without_terms']:g} without terms; {summary['malformed']:g} malformed rows left out"
    )
    if summary["passages_per_second"] is None:
        return counted
    padding = "" if summary["padding_share"] is None else f"{summary['padding_share']:.1%} padding, "
    rate = f"{summary['passages_per_second']:.3g} passages/s a worker"
    return f"{counted}; {rate}, {padding}{summary['waiting_share']:.1%} of their time not computing"
