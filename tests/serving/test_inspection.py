"""What the service shows of conversations and of a run's turns: as JSON over HTTP, and on its page in a headless browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from raydistill.config import ServeConfig
from raydistill.config_loading import load_config
from raydistill.inspector import RunTurns
from raydistill.serving.client import SearchClient
from tests.headless import headless_chromium
from tests.serving.conftest import World
from tests.serving.inspected_run import CONVERSATION, MARKUP, asked, looked, views, write_run


@pytest.fixture(scope="module")
def inspected(animals: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeConfig]:
    """A service that shows a run and a second student."""
    from raydistill.serving.start import running

    run = write_run(animals, tmp_path_factory.mktemp("run"))
    config = animals.config(inspect={"run": str(run), "students": {"twin": str(animals.folder / "student")}, "k": 9})
    with running(config, RunTurns(load_config(str(run)))):
        yield config


def test_a_turn_of_the_run_is_shown_through_baselines_teachers_and_students(inspected: ServeConfig) -> None:
    found = looked(inspected, query_id="c1<::>2", k=4)
    assert found["history"] == [CONVERSATION[:2]]
    assert found["question"] == CONVERSATION[2]
    assert found["grades"] == {"otter/food": 1}
    seen = views(found)
    assert list(seen) == ["last turn", "full conversation", "good", "poor", "student", "twin"]
    assert [name for name, view in seen.items() if view["student"]] == ["student", "twin"]
    assert seen["good"]["text"] == "the otter eats what food"
    assert seen["good"]["found"][0]["passage_id"] == "otter/food"
    assert seen["good"]["found"][0]["grade"] == 1
    assert seen["good"]["first_relevant"] == 1
    origins = {term["term"]: term["origin"] for term in seen["good"]["terms"]}
    assert origins["food"] == "question"
    assert origins["otter"] == "history"
    assert {term["term"]: term["origin"] for term in seen["poor"]["terms"]}["viper"] == "added"
    assert seen["student"] == {**seen["twin"], "name": "student"}
    assert len(seen["student"]["found"]) == 4


def test_the_student_s_view_is_what_search_and_explain_say(inspected: ServeConfig) -> None:
    view = views(looked(inspected, conversation=CONVERSATION, k=3))["student"]
    client = SearchClient(f"http://127.0.0.1:{inspected.http.port}", timeout_s=180)
    answer = client.search(CONVERSATION, k=3)
    assert [(each["passage_id"], each["score"]) for each in view["found"]] == [
        (passage.passage_id, pytest.approx(passage.score, rel=1e-4)) for passage in answer.passages
    ]
    assert len(view["terms"]) == answer.query_terms
    best = view["found"][0]
    told = {each.term: each.product for each in client.explain(CONVERSATION, best["passage_id"]).contributions}
    assert dict(best["matches"]) == pytest.approx({term: told[term] for term, _ in best["matches"]}, rel=1e-4)


def test_a_typed_conversation_has_no_rewrites_and_no_judgements(inspected: ServeConfig) -> None:
    found = looked(inspected, conversation=["where does the heron live"])
    assert list(views(found)) == ["last turn", "full conversation", "student", "twin"]
    assert found["grades"] == {}
    assert all(each["grade"] is None for each in views(found)["last turn"]["found"])


def test_the_run_s_turns_are_listed_by_set(inspected: ServeConfig) -> None:
    status, _, answer = asked(inspected, "GET", "/turns?set=test")
    listed = json.loads(answer)["turns"]
    assert status == 200
    assert [(turn["query_id"], turn["depth"]) for turn in listed] == [("c1<::>1", 1), ("c1<::>2", 2)]
    listed = json.loads(asked(inspected, "GET", "/turns?set=test&like=What%20FOOD")[2])["turns"]
    assert [turn["query_id"] for turn in listed] == ["c1<::>2"]
    status, _, answer = asked(inspected, "GET", "/turns?set=dev")
    assert (status, json.loads(answer)["error"]["code"]) == (404, "unknown_set")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 422, "invalid_body"),
        ({"conversation": ["a"], "query_id": "c1<::>2"}, 422, "invalid_body"),
        ({"query_id": "c9<::>1"}, 404, "unknown_turn"),
        ({"query_id": 7}, 422, "invalid_field"),
        ({"conversation": []}, 422, "empty_conversation"),
        ({"conversation": ["a", "b"]}, 422, "answered_conversation"),
        ({"conversation": ["a"], "k": 10}, 422, "k_out_of_range"),
        ({"conversation": ["a"], "k": 0}, 422, "k_out_of_range"),
        ({"conversation": ["a"], "depth": 3}, 422, "unknown_field"),
    ],
)
def test_what_cannot_be_looked_at_is_refused_with_the_reason(inspected, body, status, code):
    answered, _, answer = asked(inspected, "POST", "/inspect", body)
    assert (answered, json.loads(answer)["error"]["code"]) == (status, code)


# The page itself, in a browser.


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with headless_chromium() as started:
        yield started


@pytest.fixture
def page(browser: Any, inspected: ServeConfig) -> Iterator[Any]:
    """The page, just opened; after the test it must have complained of nothing to the console but refused requests."""
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get_log("browser")
    browser.get(f"http://127.0.0.1:{inspected.http.port}/inspect")
    WebDriverWait(browser, 60).until(lambda each: each.find_elements("css selector", "#turns option"))
    yield browser
    errors = [entry["message"] for entry in browser.get_log("browser") if "Failed to load resource" not in entry["message"]]
    assert errors == []


def wait_for(browser: Any, selector: str, number: int = 1) -> list[Any]:
    from selenium.webdriver.support.ui import WebDriverWait

    def shown(each: Any) -> list[Any] | bool:
        found = [node for node in each.find_elements("css selector", selector) if node.is_displayed()]
        return found if len(found) >= number else False

    waited: list[Any] = WebDriverWait(browser, 60).until(shown)
    return waited


def type_and_look(browser: Any, text: str) -> None:
    said = browser.find_element("id", "said")
    said.clear()
    said.send_keys(text)
    browser.find_element("id", "look").click()


def test_a_typed_conversation_is_searched_and_explained_on_the_page(page: Any) -> None:
    type_and_look(page, "\n".join(CONVERSATION))
    cards = wait_for(page, ".view", 4)
    assert [card.find_element("css selector", "h2").text for card in cards][:2] == ["student", "twin"]
    student = cards[0]
    assert len(student.find_elements("css selector", "ol.passages li")) == 5
    assert student.find_elements("css selector", ".term")
    next(
        button for button in student.find_elements("css selector", "button") if button.text == "every matching term"
    ).click()
    table = wait_for(page, ".why table")[0]
    products = [float(row.text.split()[-1]) for row in table.find_elements("css selector", "tbody tr")]
    score = float(student.find_elements("css selector", "ol.passages li .row .soft")[1].text)
    assert sum(products) == pytest.approx(score, abs=0.02)


def test_a_turn_is_picked_by_words_and_its_views_can_be_hidden(page: Any) -> None:
    turn = page.find_element("id", "turn")
    turn.send_keys("what food")
    page.execute_script("arguments[0].dispatchEvent(new Event('change'))", turn)
    cards = wait_for(page, ".view", 6)
    names = [card.find_element("css selector", "h2").text for card in cards]
    assert names == ["student", "twin", "last turn", "full conversation", "good", "poor"]
    assert "first relevant at 1" in cards[4].text
    assert "relevant 1" in cards[4].text
    assert page.find_element("id", "said").get_attribute("value").splitlines() == CONVERSATION
    poor = cards[5]
    assert "+viper" in [term.text.rstrip("0123456789.") for term in poor.find_elements("css selector", ".term.added")]
    page.find_elements("css selector", "#choice input")[5].click()
    assert not poor.is_displayed()


def test_mistakes_are_told_on_the_page(page: Any) -> None:
    type_and_look(page, "a question\nand its answer")
    assert "ends with an answer" in wait_for(page, "#problem")[0].text
    type_and_look(page, "   ")
    assert "ends without a question" in wait_for(page, "#problem")[0].text
    assert not page.find_element("id", "told").is_displayed()


def test_what_was_said_is_shown_as_text(page: Any, inspected: ServeConfig) -> None:
    page.get(f"http://127.0.0.1:{inspected.http.port}/inspect?turn=c2%3C::%3E2")
    wait_for(page, ".view", 4)
    assert MARKUP in page.find_element("id", "conversation").text
    assert page.title == "raydistill: animals"
    assert not page.find_elements("css selector", "main img")


def test_the_page_fits_a_phone(page: Any) -> None:
    page.set_window_size(400, 900)
    try:
        type_and_look(page, "\n".join(CONVERSATION))
        wait_for(page, ".view", 4)
        assert page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    finally:
        page.set_window_size(1280, 1000)
