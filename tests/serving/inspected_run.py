"""A run over the animals' index whose turns the service's page shows: conversations, judgements, two teachers' rewrites."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

import yaml

from raydistill.config import ServeConfig
from tests.serving.conftest import World

CONVERSATION = ["tell me where the otter lives", "the otter lives in the forest near water", "what food does it eat"]
MARKUP = "<img src=x onerror=document.title='hacked'>"
"""What must stay text wherever it is shown."""
TURNS = (
    ("c1", "test", "tell me where the otter lives", "the otter lives in the forest near water", "what food does it eat"),
    ("c2", "train", "tell me where the lynx lives", f"the lynx {MARKUP} lives in the forest", "when does it sleep"),
)
REWRITES = {
    "good": {"c1<::>2": "the otter eats what food", "c1<::>1": "where does the otter live"},
    "poor": {"c1<::>2": "what food does it eat the viper"},
}


def write_run(animals: World, folder: Path) -> Path:
    """Write the run's files, let its teachers rewrite, and return the path of its configuration."""
    from raydistill.config_loading import load_config
    from raydistill.pipeline import Chain

    conversations = [
        {
            "conversation_id": name,
            "split": split,
            "turns": [
                {"turn_id": 1, "query_id": f"{name}<::>1", "user": first, "agent": answer},
                {"turn_id": 2, "query_id": f"{name}<::>2", "user": second, "agent": ""},
            ],
        }
        for name, split, first, answer, second in TURNS
    ]
    (folder / "conversations.jsonl").write_text("".join(json.dumps(each) + "\n" for each in conversations))
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nc1<::>2\totter/food\t1\nc1<::>1\totter/home\t2\n")
    for name, texts in REWRITES.items():
        rows = [json.dumps({"_id": query_id, "text": text}) + "\n" for query_id, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("".join(rows))
    files = {"conversations": str(folder / "conversations.jsonl"), "qrels": str(folder / "qrels.tsv")}
    tree = {
        "run": "animals-run",
        "root": animals.root,
        "data": {
            "corpus": [str(animals.folder / "corpus.jsonl.gz")],
            "train": {**files, "split": "train"},
            "test": {**files, "split": "test"},
        },
        "teachers": [{"engine": "recorded", "name": name, "rewrites": str(folder / f"{name}.jsonl")} for name in REWRITES],
        "student": {"model": str(animals.folder / "encoder"), "text": {"max_tokens": 64}},
        "index": {"name": "animals", "documents": {"kind": "lexical"}, "passages_per_segment": 7},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    Chain(load_config(str(path))).teach()
    return path


def asked(served: ServeConfig, method: str, path: str, body: Any = None) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", served.http.port, timeout=120)
    connection.request(method, path, None if body is None else json.dumps(body))
    response = connection.getresponse()
    return response.status, dict(response.getheaders()), response.read()


def looked(served: ServeConfig, **body: Any) -> dict[str, Any]:
    status, _, answer = asked(served, "POST", "/inspect", body)
    assert status == 200, answer
    found: dict[str, Any] = json.loads(answer)
    return found


def views(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {view["name"]: view for view in found["views"]}
