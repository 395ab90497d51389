"""Fixtures for stores: the same root on both kinds, and a proxy before the S3 server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_proxy import FaultProxy


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh run root on each kind of store."""
    if request.param == "local":
        return f"file://{tmp_path}/runs"
    return str(request.getfixturevalue("s3_root"))


@pytest.fixture
def fault_proxy(s3_root: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy that this test's requests pass through."""
    proxy = FaultProxy(s3_endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    yield proxy
    proxy.close()
