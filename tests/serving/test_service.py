"""The service over HTTP, through its client: answers, mistakes, switches of version, deaths."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from raydistill.config import ServeConfig
from raydistill.conversations.records import Turn
from raydistill.conversations.text import student_text
from raydistill.encoders.batch import SparseBatch
from raydistill.errors import ConfigError, ResourceError, StorageError
from raydistill.index.publish import current_version
from raydistill.index.search import Searcher, open_searcher
from raydistill.serving.client import FailedError, RefusedError, SearchClient, ServiceError
from tests.animal_world import ANIMALS, TRAITS
from tests.conftest import free_port
from tests.serving.conftest import World

CONVERSATION = ["tell me where the otter lives", "the otter lives in the forest near water", "what food does it eat"]


@pytest.fixture
def client(served: ServeConfig) -> SearchClient:
    return SearchClient(f"http://127.0.0.1:{served.http.port}", timeout_s=180)


def encoded(animals: World, *conversation: str) -> SparseBatch:
    """Return the query vector of a conversation, encoded here."""
    from raydistill.encoders.checkpoint import load_student

    student = load_student(animals.folder / "student")
    *before, question = conversation
    history = list(zip(before[::2], before[1::2], strict=True))
    return student.encoder().encode_queries([student_text(question, history, student.text, "[SEP]")])


def expected(searcher: Searcher, query: SparseBatch, k: int) -> list[tuple[str, float]]:
    found = searcher.search(query, k)
    hits = int((found.passages[0] >= 0).sum())
    return list(zip(searcher.passage_ids(found.passages[0, :hits]), found.scores[0, :hits].tolist(), strict=True))


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within 120 s"
        time.sleep(0.05)


def test_a_search_over_http_equals_one_in_this_process(client: SearchClient, animals: World) -> None:
    version = current_version(animals.root, "animals")
    answer = client.search(CONVERSATION, k=7)
    ours = expected(open_searcher(version), encoded(animals, *CONVERSATION), 7)
    assert [passage.passage_id for passage in answer.passages] == [passage_id for passage_id, _ in ours]
    np.testing.assert_allclose([passage.score for passage in answer.passages], [score for _, score in ours], rtol=1e-4)
    assert (answer.index.name, answer.index.version) == ("animals", version.version)
    assert answer.index.fingerprint == version.fingerprint
    assert answer.query_terms == encoded(animals, *CONVERSATION).lengths()[0]
    for passage in answer.passages:
        animal, trait = passage.passage_id.split("/")
        assert passage.text == f"{animal}\nthe {animal} {TRAITS[trait]}"


def test_turns_and_utterances_find_the_same(client: SearchClient) -> None:
    asked, answered, question = CONVERSATION
    turns = [Turn("c<::>1", 1, asked, answered), Turn("c<::>2", 2, question)]
    assert client.search(turns, text=False).passages == client.search(CONVERSATION, text=False).passages
    assert all(passage.text is None for passage in client.search(turns, text=False).passages)


def test_an_explanation_adds_up_to_the_score_of_the_search(client: SearchClient) -> None:
    for passage in client.search(CONVERSATION, k=5).passages:
        explained = client.explain(CONVERSATION, passage.passage_id)
        assert explained.score == pytest.approx(passage.score, rel=1e-4)
        assert sum(each.product for each in explained.contributions) == pytest.approx(explained.score, rel=1e-5)
        animal, _ = passage.passage_id.split("/")
        words = {animal, "the", *" ".join(TRAITS.values()).split()}
        assert {each.term for each in explained.contributions} <= words


def test_concurrent_requests_of_any_k_are_answered_as_if_alone(client: SearchClient) -> None:
    asked = [([f"tell me where the {animal} lives"], k) for animal in ANIMALS for k in (1, 3, 10)]
    alone = [client.search(conversation, k).passages for conversation, k in asked]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda each: client.search(*each).passages, asked * 4))
    for ours, theirs in zip(together, alone * 4, strict=True):
        assert [each.passage_id for each in ours] == [each.passage_id for each in theirs]
        np.testing.assert_allclose([each.score for each in ours], [each.score for each in theirs], rtol=1e-4)


@pytest.mark.parametrize(
    ("conversation", "k", "status", "code"),
    [
        ([], 10, 422, "empty_conversation"),
        (["   "], 10, 422, "empty_conversation"),
        (["a", "b"], 10, 422, "answered_conversation"),
        (["a" * 501], 10, 422, "long_utterance"),
        (["a"] * 11, 10, 422, "long_conversation"),
        (["a"], 0, 422, "k_out_of_range"),
        (["a"], 51, 422, "k_out_of_range"),
        (["a" * 30_000], 10, 413, "body_too_large"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_the_reason(client, conversation, k, status, code):
    with pytest.raises(RefusedError) as caught:
        client.search(conversation, k)
    assert (caught.value.status, caught.value.code) == (status, code)


def test_an_unknown_passage_cannot_be_explained(client: SearchClient) -> None:
    with pytest.raises(RefusedError, match=r"passage 'unicorn/home' is not in version \d+ of the index") as caught:
        client.explain(CONVERSATION, "unicorn/home")
    assert (caught.value.status, caught.value.code) == (404, "unknown_passage")


def raw(served: ServeConfig, method: str, path: str, body: bytes | None = None) -> tuple[int, dict[str, dict[str, str]]]:
    connection = http.client.HTTPConnection("127.0.0.1", served.http.port, timeout=60)
    connection.request(method, path, body)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def test_bodies_and_paths_that_make_no_sense_get_a_json_error(served: ServeConfig) -> None:
    status, answer = raw(served, "POST", "/search", b'{"conversation": [')
    assert (status, answer["error"]["code"]) == (400, "malformed_json")
    status, answer = raw(served, "POST", "/serach", b"{}")
    assert (status, answer["error"]["code"]) == (404, "unknown_path")
    status, answer = raw(served, "GET", "/search")
    assert (status, answer["error"]["code"]) == (405, "wrong_method")


def test_a_body_without_a_length_is_cut_off_at_the_limit(served: ServeConfig) -> None:
    """Chunks: no header says how long the body is."""
    with socket.create_connection(("127.0.0.1", served.http.port), timeout=60) as connection:
        connection.sendall(b"POST /search HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(30):
            connection.sendall(b"3e8\r\n" + b" " * 1000 + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        assert b" 413 " in connection.recv(4096).split(b"\r\n")[0]


def test_health_and_version_tell_what_is_served(client: SearchClient, animals: World) -> None:
    health, version = client.health(), client.version()
    assert health["status"] == "ok"
    assert [group["serving"] for group in health["groups"]] == [True, True]
    assert sum(group["segments"] for group in health["groups"]) == version["segments"] == 3
    assert (version["passages"], version["texts"]) == (len(ANIMALS) * len(TRAITS), True)
    assert version["index"]["version"] == current_version(animals.root, "animals").version


def test_requests_are_counted_where_prometheus_looks(client: SearchClient, served: ServeConfig) -> None:
    import ray

    client.search(CONVERSATION)
    with pytest.raises(RefusedError):
        client.search([])
    port = ray.nodes()[0]["MetricsExportPort"]

    def exported() -> str:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()

    names = ("raydistill_requests", "raydistill_request_ms_bucket", "raydistill_encode_ms", "raydistill_search_ms")
    wait_until(lambda: all(name in exported() for name in (*names, "raydistill_query_terms")), "the metrics' export")
    wait_until(lambda: 'status="422"' in exported(), "the count of refusals")


def test_an_actor_killed_under_load_costs_no_answer(client: SearchClient) -> None:
    alone = [each.passage_id for each in client.search(CONVERSATION).passages]
    group = client.health()["groups"][0]
    stop, errors, answers = threading.Event(), [], []

    def read() -> None:
        while not stop.is_set():
            try:
                answers.append([each.passage_id for each in client.search(CONVERSATION).passages])
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(answers) > 5, "searching")
    os.kill(group["pid"], signal.SIGKILL)
    before = len(answers)
    wait_until(lambda: len(answers) > before + 10, "searching on")
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert all(answer == alone for answer in answers)

    def is_well() -> bool:
        try:
            return client.health()["groups"][0]["pid"] != group["pid"]
        except FailedError:  # 503 while the actor is away
            return False

    wait_until(is_well, "a new actor")


def test_a_published_version_is_taken_up_under_load_and_no_answer_mixes_two(client: SearchClient, animals: World) -> None:
    before = current_version(animals.root, "animals")
    query = encoded(animals, *CONVERSATION)
    answers, errors, stop = [], [], threading.Event()

    def read() -> None:
        while not stop.is_set():
            try:
                answers.append(client.search(CONVERSATION, k=6))
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    published = [before]
    for k1 in (1.6, 0.4):
        version = animals.publish(k1)
        published.append(version)
        wait_until(lambda wanted=version: bool(answers) and answers[-1].index.version == wanted.version, "the switch")
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    right = {each.version: expected(open_searcher(each), query, 6) for each in published}
    scores = [[score for _, score in found] for found in right.values()]
    assert not np.allclose(scores[0], scores[1], rtol=1e-2), "the versions must differ for this test to mean anything"
    assert {answer.index.version for answer in answers} == set(right)
    for answer in answers:
        ours = right[answer.index.version]
        assert [each.passage_id for each in answer.passages] == [passage_id for passage_id, _ in ours]
        np.testing.assert_allclose([each.score for each in answer.passages], [score for _, score in ours], rtol=1e-4)


def test_a_client_names_what_does_not_answer() -> None:
    with pytest.raises(ServiceError, match=r"http://127\.0\.0\.1:\d+ could not be asked"):
        SearchClient(f"http://127.0.0.1:{free_port()}").version()
    with pytest.raises(ServiceError, match="is no address of a service"):
        SearchClient("localhost:8000")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        slow = SearchClient(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.2)
        with pytest.raises(ServiceError, match=r"did not answer within 0\.2 s"):
            slow.version()


def test_what_cannot_be_served_is_refused_before_anything_starts(animals: World, minilm: str) -> None:
    from raydistill.serving.start import start

    with pytest.raises(StorageError, match="holds no published index"):
        start(animals.config(index="plants"))
    with pytest.raises(StorageError, match="is no complete student"):
        start(animals.config(student=f"{animals.root}/artifacts/student/other-0123456789abcdef"))
    with pytest.raises(ConfigError, match="neither a folder nor the address of a student"):
        start(animals.config(student="some/encoder"))
    with pytest.raises(ResourceError, match=r"replicas\.workers asks for 9 actors"):
        start(animals.config(replicas={"workers": {"actors": 9}}))
    with pytest.raises(ResourceError, match=r"the service asks for 2\.5 CPU \(replicas 1 and fan_out 1\.5\)"):
        start(animals.config(replicas={}, fan_out={"workers": {"cpus": 1.5}}))
    with pytest.raises(ConfigError, match="serve it with the student that was trained on it"):
        start(animals.config(student="package:raydistill/demo/models/encoder"))
