"""Term contributions: the shared terms and nothing else, and together the score."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raydistill.encoders.batch import SparseBatch
from raydistill.index.search import Searcher
from raydistill.index.segment import Segment, write_segment
from raydistill.serving.explanation import contributions

VOCABULARY = [f"term {number}" for number in range(9)]
vectors = st.dictionaries(st.integers(0, 8), st.floats(0.015625, 50, width=32), max_size=9)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(vectors, vectors)
def test_the_products_of_the_shared_terms_add_up_to_the_score(tmp_path, asked, stored):
    query, passage = (SparseBatch.from_rows([each], 9) for each in (asked, stored))
    write_segment(tmp_path / "x.seg", passage, ["p"], "f16")
    searcher = Searcher([Segment(tmp_path / "x.seg")])
    found = contributions(searcher.explain(query, 0), VOCABULARY)
    assert {each.term for each in found} == {VOCABULARY[term] for term in asked.keys() & stored.keys()}
    score = searcher.scores(query, [np.array([0])])[0][0]
    assert sum(each.product for each in found) == pytest.approx(score, rel=1e-5)
    assert [each.product for each in found] == sorted((each.product for each in found), reverse=True)
    for each in found:
        assert each.query_weight == np.float32(asked[VOCABULARY.index(each.term)])
        assert each.product == pytest.approx(each.query_weight * each.passage_impact, rel=1e-6)
