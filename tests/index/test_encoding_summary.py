"""What encoding took, added up over segments: shares of sums, not means of shares."""

from __future__ import annotations

import pytest

from raydistill.encoders.interface import EncodingTally
from raydistill.index.encoding_summary import encoding_summary, in_words, segment_counters

FIRST = segment_counters(EncodingTally(300, 10, 9000, 10000, 6.0), 1, 10.0)
SECOND = segment_counters(EncodingTally(100, 0, 1000, 1000, 1.0), 2, 10.0)


def test_shares_are_of_the_sums() -> None:
    found = encoding_summary([FIRST, SECOND], malformed=4)
    assert (found["passages"], found["truncated"], found["without_terms"], found["malformed"]) == (400, 10, 3, 4)
    assert found["padding_share"] == pytest.approx(1 - 10000 / 11000)
    assert found["waiting_share"] == pytest.approx(1 - 7 / 20)
    assert found["passages_per_second"] == pytest.approx(400 / 20)
    assert "20 passages/s a worker, 9.1% padding, 65.0% of their time not computing" in in_words(found)


def test_segments_of_an_earlier_release_are_left_out() -> None:
    assert encoding_summary([{"postings": 7.0}, FIRST], 0) == encoding_summary([FIRST], 0)
    nothing = encoding_summary([{"postings": 7.0}], 2)
    assert (nothing["passages_per_second"], nothing["padding_share"], nothing["waiting_share"]) == (None, None, None)
    assert in_words(nothing).endswith("2 malformed rows left out")


def test_an_encoder_without_tokens_has_no_padding() -> None:
    lexical = encoding_summary([segment_counters(EncodingTally(5, compute_seconds=1.0), 0, 2.0)], 0)
    assert lexical["padding_share"] is None
    assert "padding" not in in_words(lexical)
