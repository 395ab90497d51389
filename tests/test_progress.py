"""Progress in a log file: lines now and then, one at the end, none for nothing. On a terminal: bars, also of threads."""

from __future__ import annotations

import logging
import sys
from threading import Barrier, Thread

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


def test_stages_of_several_threads_have_a_bar_each_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    together = Barrier(2)

    def work(name: str) -> None:
        with track(f"teach {name}", 2, "turns") as advance:
            together.wait(timeout=30)
            advance(1)
            advance(1, f"note of {name}")
            together.wait(timeout=30)

    threads = [Thread(target=work, args=(name,)) for name in ("large", "small")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    with track("index", 1, "segments") as advance:
        advance(1)
    shown = capsys.readouterr().err
    for stage, count in (("teach large", "2/2"), ("teach small", "2/2"), ("index", "1/1")):
        assert any(stage in line and count in line for line in shown.splitlines()), shown
