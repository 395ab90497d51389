"""Progress in a log file: lines now and then, one at the end, none for nothing."""

from __future__ import annotations

import logging

import pytest

from raydistill.progress import track


def test_a_log_gets_one_line_at_the_end_and_none_for_no_work(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="raydistill")
    with track("index", 3, "segments") as advance:
        advance(1)
        advance(2, "note")
        advance(0)
        advance(0)
    assert len(caplog.messages) == 1
    assert "index: 3 of 3 segments" in caplog.messages[0]
    assert "note" in caplog.messages[0]
