"""Passages as lines of text for other engines: one function a format, from a window of passages to bytes.

    anserini     {"id": "p1", "content": "", "vector": {"1037": 42}}            JsonVectorCollection, indexed with -impact
                                                                                -pretokenized
    jsonl        {"id": "p1", "vector": {"1037": 1.25}}                         what Seismic and others read
    opensearch   {"index": {"_id": "p1"}} and {FIELD: {"1037": 1.25}}           two lines a passage, the body of _bulk
    qdrant       {"points": [{"id": 0, "payload": {"passage_id": "p1"},         a line is the body of one
                  "vector": {FIELD: {"indices": [1037], "values": [1.25]}}}]}   PUT /collections/NAME/points

Weights that are no whole numbers are written with nine significant digits, which name a float32 exactly.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence

from raydistill.index.exchange.quantise import Quantisation
from raydistill.index.exchange.stored import Window

_POINTS_A_REQUEST = 1000

LineWriter = Callable[[Window], bytes]


def anserini_lines(names: Sequence[str], quantised: Quantisation) -> LineWriter:
    """Return the writer of Anserini's JSON vectors; `content` is empty, since an index holds no text."""
    keys = _keys(names)

    def lines(window: Window) -> bytes:
        weights = map(str, quantised.apply(window.vectors.weights).tolist())
        vectors = _objects(window, keys, weights)
        return "".join(
            f'{{"id": {json.dumps(passage)}, "content": "", "vector": {vector}}}\n'
            for passage, vector in zip(window.ids, vectors, strict=True)
        ).encode()

    return lines


def json_lines(names: Sequence[str]) -> LineWriter:
    """Return the writer of plain JSON lines with the stored impacts."""
    keys = _keys(names)

    def lines(window: Window) -> bytes:
        vectors = _objects(window, keys, _decimals(window))
        return "".join(
            f'{{"id": {json.dumps(passage)}, "vector": {vector}}}\n'
            for passage, vector in zip(window.ids, vectors, strict=True)
        ).encode()

    return lines


def opensearch_lines(names: Sequence[str], field: str) -> LineWriter:
    """Return the writer of OpenSearch's bulk actions; the index is named in the request's address."""
    keys = _keys(names)
    opening = f"{{{json.dumps(field)}: "

    def lines(window: Window) -> bytes:
        vectors = _objects(window, keys, _decimals(window))
        return "".join(
            f'{{"index": {{"_id": {json.dumps(passage)}}}}}\n{opening}{vector}}}\n'
            for passage, vector in zip(window.ids, vectors, strict=True)
        ).encode()

    return lines


def qdrant_lines(field: str) -> LineWriter:
    """Return the writer of Qdrant's requests, 1,000 points each; a point's id is the passage's number in the index."""
    name = json.dumps(field)

    def lines(window: Window) -> bytes:
        terms = window.vectors.term_ids.tolist()
        weights = list(_decimals(window))
        points = []
        edges = window.vectors.indptr.tolist()
        for row, (number, passage) in enumerate(zip(window.numbers.tolist(), window.ids, strict=True)):
            start, stop = edges[row], edges[row + 1]
            vector = f'{{"indices": {terms[start:stop]}, "values": [{", ".join(weights[start:stop])}]}}'
            payload = json.dumps({"passage_id": passage})
            points.append(f'{{"id": {number}, "payload": {payload}, "vector": {{{name}: {vector}}}}}')
        requests = (points[at : at + _POINTS_A_REQUEST] for at in range(0, len(points), _POINTS_A_REQUEST))
        return "".join(f'{{"points": [{", ".join(request)}]}}\n' for request in requests).encode()

    return lines


def opensearch_mapping(field: str, field_type: str) -> bytes:
    """Return the body that creates an OpenSearch index for the bulk actions."""
    kind = {"type": "rank_features"}
    if field_type == "sparse_vector":
        body = {"type": "sparse_vector", "method": {"name": "seismic"}}
        document = {"settings": {"index": {"sparse": True}}, "mappings": {"properties": {field: body}}}
    else:
        document = {"mappings": {"properties": {field: kind}}}
    return (json.dumps(document, indent=1) + "\n").encode()


def qdrant_collection(field: str) -> bytes:
    """Return the body that creates a Qdrant collection for the requests."""
    return (json.dumps({"vectors": {}, "sparse_vectors": {field: {}}}, indent=1) + "\n").encode()


def _keys(names: Sequence[str]) -> list[str]:
    return [f"{json.dumps(name)}: " for name in names]


def _decimals(window: Window) -> Iterable[str]:
    return (f"{weight:.9g}" for weight in window.vectors.weights.tolist())


def _objects(window: Window, keys: Sequence[str], weights: Iterable[str]) -> Iterable[str]:
    """Yield each passage's {term: weight} object."""
    pairs = [keys[term] + weight for term, weight in zip(window.vectors.term_ids.tolist(), weights, strict=True)]
    edges = window.vectors.indptr.tolist()
    for row in range(len(window.ids)):
        yield "{" + ", ".join(pairs[edges[row] : edges[row + 1]]) + "}"
