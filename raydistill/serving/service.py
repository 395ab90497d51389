"""The search service on Ray Serve: replicas answer HTTP, encode conversations and search the index's fan-out.

POST /search and /explain, GET /health and /version; the page at GET /inspect, which asks POST /inspect and GET /turns. All
replicas share the actors of one fan-out; each holds the student once, looks for new index versions by itself, and answers
every request from one version, which it names. Requests that come at once are encoded and searched as a batch. Counts and
latencies go to Ray's metrics, which every node exports for Prometheus. What a request may be is in `requests`; starting and
ending the service is in `start`, what the page shows in `inspection`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.metrics import Counter, Histogram
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from raydistill import __version__
from raydistill.config import HttpConfig, RerankConfig, ServeConfig
from raydistill.errors import RaydistillError, UnavailableError
from raydistill.index.explain import explain
from raydistill.index.fan_out import FanOut, Snapshot
from raydistill.index.publish import current_version
from raydistill.index.segment_group import Hit
from raydistill.reranking.order import query_text, reordered
from raydistill.serving.explanation import contributions
from raydistill.serving.inspection import InspectedRun, ServedInspection
from raydistill.serving.inspector_page import SECURITY_POLICY, inspector_page
from raydistill.serving.requests import (
    Asked,
    RequestError,
    SearchRequest,
    explain_request,
    inspect_request,
    search_request,
    too_large,
)
from raydistill.serving.student import StudentQueries

logger = logging.getLogger("raydistill")

_MILLISECONDS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000]
_TERMS = [1, 2, 5, 10, 20, 30, 50, 100, 200, 500, 1000]

_Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class _Found:
    """The answer to one request of a batch.

    Attributes:
        snapshot: the version that was searched.
        hits, scores: the passages, best first.
        terms: of the query vector.
        encode_ms, search_ms: of the whole batch.
    """

    snapshot: Snapshot
    hits: list[Hit]
    scores: list[float]
    terms: int
    encode_ms: float
    search_ms: float


class SearchService:
    """One replica.

    Args:
        config: the service.
        fan_out_name: of the actors that all replicas share.
        reranker: the second stage, None without one.
        run: whose turns the page shows, None for none.
    """

    def __init__(
        self,
        config: ServeConfig,
        fan_out_name: str,
        reranker: DeploymentHandle | None = None,
        run: InspectedRun | None = None,
    ) -> None:
        import torch

        torch.set_num_threads(max(1, int(config.replicas.workers.cpus)))
        self._stopped = threading.Event()
        self._routes: dict[str, dict[str, _Handler]] = {
            "/search": {"POST": self._search},
            "/explain": {"POST": self._explain},
            "/health": {"GET": self._health},
            "/version": {"GET": self._version},
        }
        self._inspection = None if config.inspect is None else ServedInspection(config, run)
        if config.inspect is not None:
            self._routes |= {"/inspect": {"GET": self._page, "POST": self._inspect}, "/turns": {"GET": self._turns}}
        self._config = config
        self._reranker = reranker
        self._student = StudentQueries(
            config.student, config.trust_remote_code, "cuda" if config.replicas.workers.gpus else "cpu"
        )
        self._student.vectors([Asked("warm up")])
        # Looked up here, not handed over: a replica may be started anew long after the service.
        version = current_version(config.root, config.index)
        self._fan_out = FanOut(version, config.fan_out, fan_out_name)
        self._metrics = _Metrics()
        self._searched.set_max_batch_size(config.replicas.batch)
        self._searched.set_batch_wait_timeout_s(config.replicas.batch_wait_ms / 1e3)
        threading.Thread(target=self._follow, name="raydistill-follow", daemon=True).start()

    def __del__(self) -> None:
        self._stopped.set()

    async def __call__(self, request: Request) -> Response:
        """Answer a request; every problem is a JSON error with a status, and counted."""
        started = time.perf_counter()
        path = request.url.path
        response: Response
        try:
            response = await self._route(request.method, path)(request)
        except RequestError as problem:
            response = JSONResponse(problem.to_json(), problem.status)
        except UnavailableError as error:
            response = JSONResponse(RequestError(503, "unavailable", str(error)).to_json(), 503)
        except RaydistillError as error:
            logger.error("%s: %s", path, error)
            response = JSONResponse(RequestError(500, "internal", str(error)).to_json(), 500)
        route = path if path in self._routes else "unknown"
        self._metrics.request(route, response.status_code, 1e3 * (time.perf_counter() - started))
        return response

    def _route(self, method: str, path: str) -> _Handler:
        known = ", ".join(f"{each} {name}" for name, methods in self._routes.items() for each in methods)
        if path not in self._routes:
            raise RequestError(404, "unknown_path", f"there is nothing at {path}; there are {known}")
        methods = self._routes[path]
        if method not in methods:
            wanted = " or ".join(methods)
            raise RequestError(405, "wrong_method", f"{path} takes {wanted}, not {method}; there are {known}")
        return methods[method]

    async def _search(self, request: Request) -> JSONResponse:
        """Answer with the best passages for a conversation."""
        asked = search_request(await _body(request, self._config.http), self._config.http)
        started = time.perf_counter()
        found = await self._searched(asked)
        took = {"encode": found.encode_ms, "search": found.search_ms}
        passages: list[dict[str, Any]] = [
            {"id": hit.passage_id, "score": score, "text": hit.text}
            for hit, score in zip(found.hits, found.scores, strict=True)
        ]
        if self._reranker is not None and asked.rerank:
            searched = time.perf_counter()
            passages = await self._reranked(asked.asked, passages)
            took["rerank"] = 1e3 * (time.perf_counter() - searched)
        took["total"] = 1e3 * (time.perf_counter() - started)
        shown = [
            {name: value for name, value in passage.items() if asked.text or name != "text"}
            for passage in passages[: asked.k]
        ]
        return JSONResponse(
            {
                "index": _named(found.snapshot),
                "passages": shown,
                "query_terms": found.terms,
                "milliseconds": {name: round(milliseconds, 3) for name, milliseconds in took.items()},
            }
        )

    async def _explain(self, request: Request) -> JSONResponse:
        """Answer with what each shared term adds to the score of a passage."""
        asked = explain_request(await _body(request, self._config.http), self._config.http)
        return JSONResponse(await asyncio.to_thread(self._explained, asked.asked, asked.passage_id))

    async def _page(self, request: Request) -> HTMLResponse:
        """Answer with the page for looking at conversations."""
        page = inspector_page(self._fan_out.snapshot.version.name)
        return HTMLResponse(page, headers={"Content-Security-Policy": SECURITY_POLICY})

    async def _inspect(self, request: Request) -> JSONResponse:
        """Answer with every view of a conversation or of a turn of the run."""
        assert self._config.inspect is not None
        assert self._inspection is not None
        asked = inspect_request(await _body(request, self._config.http), self._config.http, self._config.inspect.k)
        snapshot = self._fan_out.snapshot
        found = await asyncio.to_thread(self._inspection.look, asked, snapshot)
        return JSONResponse({"index": _named(snapshot), **found})

    async def _turns(self, request: Request) -> JSONResponse:
        """Answer with turns of a set of the run."""
        assert self._inspection is not None
        name = request.query_params.get("set", "test")
        like = request.query_params.get("like", "")
        return JSONResponse({"set": name, "turns": await asyncio.to_thread(self._inspection.turns, name, like)})

    async def _health(self, request: Request) -> JSONResponse:
        """Answer with the state of the index's actors; 503 while one of them does not answer."""
        groups = await asyncio.to_thread(self._fan_out.health)
        well = all(group.serving for group in groups)
        said = {
            "status": "ok" if well else "degraded",
            "index": _named(self._fan_out.snapshot),
            "groups": [dataclasses.asdict(group) for group in groups],
        }
        return JSONResponse(said, 200 if well else 503)

    async def _version(self, request: Request) -> JSONResponse:
        """Answer with what is served."""
        snapshot = self._fan_out.snapshot
        said = {
            "raydistill": __version__,
            "index": _named(snapshot),
            "passages": snapshot.passages,
            "segments": len(snapshot.version.segments),
            "vocabulary_size": snapshot.vocabulary_size,
            "texts": snapshot.has_texts,
        }
        return JSONResponse(said)

    async def check_health(self) -> None:
        """Asked by Ray Serve, which replaces a replica that raises."""

    async def _reranked(self, asked: Asked, passages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the passages in the second stage's order, with its scores beside the first one's."""
        assert self._config.rerank is not None
        assert self._reranker is not None
        read = [n for n, each in enumerate(passages[: self._config.rerank.depth]) if each["text"] is not None]
        query = query_text(asked.question, asked.history, self._config.rerank.query)
        scores = await self._reranker.scores.remote(query, [passages[n]["text"] for n in read])
        order, new = reordered(scores, len(passages), read)
        return [
            {**passages[n], "score": score, "first_score": passages[n]["score"]} for n, score in zip(order, new, strict=True)
        ]

    def _width(self, request: SearchRequest) -> int:
        """Return how many passages the first stage must find."""
        if self._config.rerank is None or not request.rerank:
            return request.k
        return max(request.k, self._config.rerank.depth)

    @serve.batch
    async def _searched(self, requests: list[SearchRequest]) -> list[_Found]:
        return await asyncio.to_thread(self._batch_found, requests)

    def _batch_found(self, requests: list[SearchRequest]) -> list[_Found]:
        """Encode and search a batch, at one version."""
        snapshot = self._fan_out.snapshot
        start = time.perf_counter()
        queries = self._student.vectors([request.asked for request in requests])
        encoded = time.perf_counter()
        widths = [self._width(request) for request in requests]
        result = snapshot.search(queries, max(widths))
        # The first k of more are the k best: the order is total.
        kept = [
            (numbers[:width][numbers[:width] >= 0], scores)
            for width, numbers, scores in zip(widths, result.passages, result.scores, strict=True)
        ]
        flat = np.concatenate([numbers for numbers, _ in kept])
        if self._config.rerank is not None or any(request.text for request in requests):
            hits = snapshot.hits(flat)
        else:
            hits = [Hit(passage_id, None) for passage_id in snapshot.passage_ids(flat)]
        searched = time.perf_counter()
        terms = queries.lengths().tolist()
        encode_ms, search_ms = 1e3 * (encoded - start), 1e3 * (searched - encoded)
        self._metrics.batch(encode_ms, search_ms, terms)
        found, first = [], 0
        for (numbers, scores), length in zip(kept, terms, strict=True):
            last = first + len(numbers)
            found.append(_Found(snapshot, hits[first:last], scores[: len(numbers)].tolist(), length, encode_ms, search_ms))
            first = last
        return found

    def _explained(self, asked: Asked, passage_id: str) -> dict[str, Any]:
        snapshot = self._fan_out.snapshot
        number = snapshot.find([passage_id])
        if number[0] < 0:
            raise RequestError(
                404, "unknown_passage", f"passage {passage_id!r} is not in version {snapshot.version.version} of the index"
            )
        query = self._student.vectors([asked])
        found = explain(*query.row(0), *snapshot.vectors(number).row(0))
        return {
            "index": _named(snapshot),
            "passage_id": passage_id,
            "score": float(found.score),
            "query_terms": int(query.lengths()[0]),
            "contributions": [dataclasses.asdict(each) for each in contributions(found, self._student.vocabulary)],
        }

    def _follow(self) -> None:
        """Switch to what is published, until the replica ends."""
        while not self._stopped.wait(self._config.poll_s):
            try:
                present = self._fan_out.version
                newest = current_version(present.root, present.name)
                if newest.vocabulary_size != present.vocabulary_size:
                    logger.error(
                        "version %d of the index is over %d terms and the student over %d; it is not served: start the "
                        "service anew with the student that belongs to it",
                        newest.version,
                        newest.vocabulary_size,
                        present.vocabulary_size,
                    )
                elif self._fan_out.refresh(newest):
                    logger.info("index %s: version %d is served now", newest.name, newest.version)
            except Exception as error:  # the old version goes on; the next look may succeed
                logger.error("the newest version of the index could not be loaded, and the present one stays: %s", error)


class Reranker:
    """A replica of the second stage."""

    def __init__(self, config: RerankConfig) -> None:
        import torch

        from raydistill.reranking.cross_encoder import CrossEncoder

        torch.set_num_threads(max(1, int(config.workers.cpus)))
        self._encoder = CrossEncoder(config, "cuda" if config.workers.gpus else "cpu")
        self._encoder.scores("warm up", ["warm up"])

    async def scores(self, query: str, passages: list[str]) -> NDArray[np.float32]:
        """Return the passages' scores, float32 [passages]."""
        return await asyncio.to_thread(self._encoder.scores, query, passages)


class _Metrics:
    """What Prometheus learns of a replica; Ray adds the replica's name."""

    def __init__(self) -> None:
        self._requests = Counter("raydistill_requests", "Requests answered.", tag_keys=("route", "status"))
        self._request_ms = _histogram("raydistill_request_ms", "Milliseconds of a request.", _MILLISECONDS, ("route",))
        self._encode_ms = _histogram("raydistill_encode_ms", "Milliseconds of encoding a batch.", _MILLISECONDS)
        self._search_ms = _histogram("raydistill_search_ms", "Milliseconds of searching a batch.", _MILLISECONDS)
        self._terms = _histogram("raydistill_query_terms", "Terms of a query vector (L0).", _TERMS)

    def request(self, route: str, status: int, milliseconds: float) -> None:
        """Count an answer."""
        self._requests.inc(tags={"route": route, "status": str(status)})
        self._request_ms.observe(max(milliseconds, 1e-3), tags={"route": route})

    def batch(self, encode_ms: float, search_ms: float, terms: list[int]) -> None:
        """Count a batch."""
        self._encode_ms.observe(max(encode_ms, 1e-3))
        self._search_ms.observe(max(search_ms, 1e-3))
        for length in terms:
            self._terms.observe(length)


def _histogram(name: str, description: str, boundaries: list[int], tags: tuple[str, ...] = ()) -> Histogram:
    return Histogram(name, description, boundaries=[float(edge) for edge in boundaries], tag_keys=tags)


def _named(snapshot: Snapshot) -> Mapping[str, Any]:
    version = snapshot.version
    return {"name": version.name, "version": version.version, "fingerprint": version.fingerprint}


async def _body(request: Request, limits: HttpConfig) -> bytes:
    """Return the body, read no further than the limit."""
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limits.body_bytes:
        raise too_large(limits)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limits.body_bytes:
            raise too_large(limits)
    return bytes(body)
