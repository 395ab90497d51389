"""How much of what teachers take from a conversation the student gets to see: `python benchmarks/reading.py
--config jobs/configs/mtrag-small.yaml --out benchmarks/results/reading-mtrag.json [section.field=value ...]`.

A term is taken from the conversation when it stands in the rewrites of at least two teachers and in the history, and not in
the question. Terms of more than a tenth of all rewrites say nothing and do not count. Printed is the share of them that lies
within the student's text, for several budgets of it, on the training turns that have a history. Nothing is trained; teachers
that have not rewritten the turns yet do so first, and may have to be paid.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from processes import machine

from raydistill.actor_pool import connect
from raydistill.config import TextConfig
from raydistill.config_loading import load_config
from raydistill.conversations.records import ConversationalQuery
from raydistill.conversations.text import full_conversation_text, history_pairs, student_text
from raydistill.encoders.documents import load_tokenizer
from raydistill.pipeline import Chain
from raydistill.teachers.rewriting import rewrite_texts

BUDGETS = ("96,32,30", "160,64,60", "256,64,60", "384,64,100", "512,64,100")
LATE = 6
"""From this turn on, turns count as late."""
MOST_COMMON = 0.1

Terms = set[int]


def main() -> int:
    """Print and store the share of the terms taken from the history that every budget lets the student see."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--budgets", nargs="*", default=BUDGETS, metavar="TOKENS,WORDS,WORDS", help="tokens of the text, "
                        "words of a question and of an answer of the history")  # fmt: skip
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    options = parser.parse_args()
    chain = Chain(load_config(options.config, options.overrides))
    chain.check("teach")
    connect(chain.config.ray)
    rewrites = {name: rewrite_texts(made) for name, made in chain.teach()["train"].items()}
    student = chain.config.student
    tokenizer = load_tokenizer(student.model, student.revision, student.trust_remote_code, "student.model")
    turns = [query for query in chain.inputs.train.queries() if query.history]
    taken = [*taken_terms(turns, rewrites, tokenizer)]
    rows = []
    for budget in options.budgets:
        text = TextConfig(
            **dict(zip(("max_tokens", "utterance_words", "answer_words"), map(int, budget.split(",")), strict=True))
        )
        rows.append({"budget": text.model_dump(), **shares(turns, taken, text, tokenizer)})
        print(f"{budget:12}", *(f"{name} {value:.3f}" for name, value in rows[-1].items() if name != "budget"))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "config": options.config.name,
            "turns": len(turns),
            "late turns": sum(query.depth >= LATE for query in turns),
            "terms taken": sum(map(len, taken)),
            "rows": rows,
            "machine": machine(),
            "versions": {name: version(name) for name in ("raydistill", "transformers")},
        }
        options.out.write_text(json.dumps(content, indent=1) + "\n")
    return 0


def taken_terms(
    turns: Sequence[ConversationalQuery], rewrites: Mapping[str, Mapping[str, str]], tokenizer: Any
) -> list[Terms]:
    """Return for every turn the terms that at least two teachers take from its history."""
    written = [
        [terms(own[query.query_id], tokenizer) for own in rewrites.values() if query.query_id in own] for query in turns
    ]
    seen = Counter(term for own in written for rewrite in own for term in rewrite)
    common = {term for term, times in seen.items() if times > MOST_COMMON * sum(map(len, written))}
    taken = []
    for query, own in zip(turns, written, strict=True):
        times = Counter(term for rewrite in own for term in rewrite)
        shared = {term for term, number in times.items() if number >= 2} - common
        said = terms(full_conversation_text("", history_pairs(query)), tokenizer)
        taken.append((shared & said) - terms(query.question, tokenizer))
    return taken


def shares(
    turns: Sequence[ConversationalQuery], taken: Sequence[Terms], text: TextConfig, tokenizer: Any
) -> dict[str, float]:
    """Return the mean tokens of the student's text, and the share of the taken terms in it: of all turns, early and late."""
    found: Counter[str] = Counter()
    for query, wanted in zip(turns, taken, strict=True):
        form = student_text(query.question, history_pairs(query), text, tokenizer.sep_token or "")
        ids = tokenizer(form, truncation=True, max_length=text.max_tokens)["input_ids"]
        part = "late" if query.depth >= LATE else "early"
        found.update({"tokens": len(ids), f"{part} read": len(wanted & set(ids)), f"{part} taken": len(wanted)})
    read, wanted_terms = found["early read"] + found["late read"], found["early taken"] + found["late taken"]
    return {
        "tokens": found["tokens"] / len(turns),
        "all": _share(read, wanted_terms),
        f"before turn {LATE}": _share(found["early read"], found["early taken"]),
        f"turn {LATE} and later": _share(found["late read"], found["late taken"]),
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def terms(text: str, tokenizer: Any) -> Terms:
    """Return the vocabulary terms of a text."""
    return set(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


if __name__ == "__main__":
    sys.exit(main())
