"""The probe accepts stores that keep their promises and refuses the others."""

from __future__ import annotations

import pytest
from fault_proxy import FaultProxy

from raydistill.errors import StorageError
from raydistill.storage.probe import check_root
from raydistill.storage.store import open_store


def test_a_good_store_passes_and_stays_empty(root: str) -> None:
    check_root(root)
    assert list(open_store(root).list("")) == []


def test_a_store_that_ignores_conditions_is_refused(s3_root: str, fault_proxy: FaultProxy) -> None:
    fault_proxy.fault = lambda method, path: "blind" if method == "PUT" else "pass"
    with pytest.raises(StorageError, match=r"ignores If-None-Match, so two runs could overwrite .*conditional writes"):
        check_root(s3_root)
    fault_proxy.fault = lambda method, path: "pass"
    assert list(open_store(s3_root).list("")) == []


def test_a_missing_bucket_is_refused(s3_endpoint: str) -> None:
    with pytest.raises(StorageError, match="does not exist; create it"):
        check_root("s3://no-such-bucket/runs")


def test_a_root_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(StorageError, match="could not be written"):
        check_root("/proc/no-such-place")
