"""Sparse vectors for the search benchmarks: synthetic passages in document order, and real ones. No engine is here.

The synthetic corpus imitates what a SPLADE encoder makes of a collection of documents cut into passages:

- 30,522 terms; term popularity falls as 1 / (rank + 12), so that a few terms occur in 40 % of the passages, the hundredth
  in about 10 %, the thousandth in about 2 %, as in the real corpora beside the checkout;
- 2,000 topics of 400 terms each, drawn by popularity ** 0.6 and weighted as 1 / (place + 8) within the topic;
- documents of 1 to 24 passages (geometric, mean 8), one after another, on two topics each, with 60 terms of their own
  (drawn by popularity ** 0.35: names and things). So neighbouring passages share terms, as they do in real corpora, which
  are stored in document order; documents themselves come in random order;
- a passage draws about 150 times: 30 % from its document's terms, 35 % from its topics, 35 % from all; drawn again counts
  once, which leaves about 120 terms;
- the impact of a term is gamma(2.2) distributed around a mean that grows with the term's rarity, log1p-compressed like
  SPLADE's, and 1.4 times stronger for terms of the document. A third of the draws are weak expansions.

A query takes a random passage: 6 to 12 of its heavier terms at strong weights, 8 to 16 expansions from the document and
its topics at weak ones, and 4 to 10 popular terms at weaker ones still: 20 to 38 terms. Everything follows from the seed;
the passages of one segment do not depend on how many others there are.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raydistill.encoders.batch import SparseBatch
from raydistill.index.compiled import compiled

VOCABULARY = 30_522
_TOPICS, _TOPIC_TERMS, _OWN_TERMS = 2_000, 400, 60
_DRAWS = 150


class SyntheticCorpus:
    """The distributions, and passages and queries drawn from them.

    Args:
        seed: of everything.
    """

    def __init__(self, seed: int = 1) -> None:
        random = np.random.default_rng(seed)
        self.seed = seed
        popularity = np.zeros(VOCABULARY)
        popularity[random.permutation(VOCABULARY)] = (np.arange(VOCABULARY) + 30.0) ** -1.2
        self.popularity = popularity / popularity.sum()
        self._all = np.cumsum(self.popularity)
        self._own = _cumulative(self.popularity**0.7)
        self._topic_terms = np.searchsorted(
            _cumulative(self.popularity**0.8), random.random((_TOPICS, _TOPIC_TERMS))
        ).astype(np.int32)
        self._in_topic = _cumulative(1.0 / (np.arange(_TOPIC_TERMS) + 8.0))
        rarity = np.clip(-np.log(self.popularity * _DRAWS), 0.0, 9.0)
        self._strength = (0.25 + 0.16 * rarity).astype(np.float32)

    def passages(self, first: int, count: int) -> SparseBatch:
        """Return `count` passages; `first` only names the stream, so that segments differ and can be made alone."""
        offsets, terms, weights, _ = self._drawn(first, count)
        return SparseBatch(offsets, terms, weights, VOCABULARY)

    def queries(self, count: int, stream: int = 10**9) -> SparseBatch:
        """Return queries about passages that resemble, but are not, those of the corpus."""
        return self.queries_about(self.passages(stream, count * 40), count)

    def queries_about(self, passages: SparseBatch, count: int) -> SparseBatch:
        """Return queries about random ones of these passages."""
        random = np.random.default_rng([self.seed, 7, count])
        rows = []
        popular = np.argsort(-self.popularity)[:400]
        for row in random.choice(len(passages), count, replace=len(passages) < count).tolist():
            terms, impacts = passages.row(row)
            share = impacts.astype(np.float64) ** 1.5
            strong = random.choice(terms, min(len(terms), int(random.integers(6, 13))), replace=False, p=share / share.sum())
            near = passages.row(min(row + 1, len(passages) - 1))[0]
            around = np.union1d(terms, near)
            weak = random.choice(around, min(len(around), int(random.integers(8, 17))), replace=False)
            common = random.choice(popular, int(random.integers(4, 11)), replace=False)
            query = {int(term): float(random.gamma(2.0, 0.08)) + 0.02 for term in common}
            query |= {int(term): float(random.gamma(2.0, 0.15)) + 0.03 for term in weak}
            query |= {int(term): float(random.gamma(4.0, 0.35)) + 0.2 for term in strong}
            rows.append(query)
        return SparseBatch.from_rows(rows, VOCABULARY)

    def _drawn(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32], int]:
        capacity = int(count * _DRAWS * 1.2) + 1000
        terms = np.empty(capacity, dtype=np.int32)
        weights = np.empty(capacity, dtype=np.float32)
        offsets = np.zeros(count + 1, dtype=np.int64)
        seed = int(np.random.default_rng([self.seed, 3, first]).integers(1, 2**31))
        filled = _draw(
            seed, offsets, terms, weights, self._all, self._own, self._topic_terms, self._in_topic, self._strength
        )
        return offsets, terms[:filled].copy(), weights[:filled].copy(), filled


def mtrag(data: Path, model: str) -> tuple[SparseBatch, SparseBatch]:
    """Return passages and queries of MTRAG: BM25 impacts of every domain's corpus, and its rewrites by `sonnet`, as word
    pieces.

    Args:
        data: folder of the domains. model: whose tokenizer; a place as configurations name it.
    """
    from raydistill.encoders.documents import load_tokenizer
    from raydistill.encoders.lexical import LexicalEncoder, count_statistics

    tokenizer = load_tokenizer(model, None, False, "model")
    texts: list[str] = []
    questions: list[str] = []
    for corpus in sorted(data.glob("*/corpus.jsonl.gz")):
        with gzip.open(corpus, "rt", encoding="utf-8") as lines:
            texts += [json.loads(line)["text"] for line in lines]
        rewrites = (corpus.parent / "rewrites" / "sonnet.jsonl").read_text(encoding="utf-8").splitlines()
        questions += [json.loads(line)["text"] for line in rewrites]
    if not texts:
        raise SystemExit(f"{data} holds no DOMAIN/corpus.jsonl.gz; name the folder with --data")
    encoder = LexicalEncoder(tokenizer, count_statistics(tokenizer, texts))
    picked = np.random.default_rng(1).choice(len(questions), min(200, len(questions)), replace=False)
    return encoder.encode_passages(texts), encoder.encode_queries([questions[row] for row in picked.tolist()])


def _cumulative(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.cumsum(weights / weights.sum())


@compiled
def _draw(seed, offsets, terms, weights, everything, own_terms, topic_terms, in_topic, strength):  # type: ignore[no-untyped-def]
    np.random.seed(seed)
    seen = np.full(len(strength), -1, dtype=np.int64)
    own = np.empty(_OWN_TERMS, dtype=np.int32)
    is_own = np.full(len(strength), -1, dtype=np.int64)
    topics = np.zeros(2, dtype=np.int64)
    left = 0
    filled = 0
    for passage in range(len(offsets) - 1):
        if left == 0:
            left = min(24, 1 + int(np.random.exponential(7.5)))
            for place in range(len(own)):
                own[place] = min(np.searchsorted(own_terms, np.random.random()), len(strength) - 1)
                is_own[own[place]] = passage + left
            for place in range(2):
                topics[place] = np.random.randint(0, len(topic_terms))
        left -= 1
        draws = max(20, min(int(_DRAWS * 1.15), int(_DRAWS * np.exp(np.random.normal(0.0, 0.25)))))
        start = filled
        for _ in range(draws):
            choice = np.random.random()
            if choice < 0.30:
                term = own[np.random.randint(0, len(own))]
            elif choice < 0.65:
                topic = topics[0] if choice < 0.55 else topics[1]
                term = topic_terms[topic, min(np.searchsorted(in_topic, np.random.random()), len(in_topic) - 1)]
            else:
                term = min(np.searchsorted(everything, np.random.random()), len(strength) - 1)
            if seen[term] != passage:
                seen[term] = passage
                terms[filled] = term
                filled += 1
        terms[start:filled] = np.sort(terms[start:filled])
        for place in range(start, filled):
            mean = strength[terms[place]]
            if is_own[terms[place]] > passage:
                mean *= 1.4
            if np.random.random() < 0.33:
                mean *= 0.25
            weights[place] = np.log1p(np.random.gamma(2.2, mean / 2.2)) + 0.003
        offsets[passage + 1] = filled
    return filled
