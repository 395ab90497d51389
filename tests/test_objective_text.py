"""The text form of objectives: what round-trips, what is refused and with which sentence, what others learn from it."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raydistill.config import InfoNce, Kld, Objective, RepCosine, Section, Term, result_fields
from raydistill.config.objective import TERMS

numbers = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
teachers = st.none() | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True).filter(lambda name: name != "none")


class Training(Section):
    """A section with an objective, as training has one."""

    objective: Objective = Objective.parse("kld")


@st.composite
def terms(draw: st.DrawFn) -> Term:
    kind = draw(st.sampled_from(list(TERMS.values())))
    given_values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        wanted = get_type_hints(kind)[field.name]
        if field.name == "teacher":
            given_values[field.name] = draw(teachers)
        elif get_origin(wanted) is not None and get_origin(wanted).__name__ == "Literal":
            given_values[field.name] = draw(st.sampled_from(get_args(wanted)))
        elif "shift" in field.name:
            given_values[field.name] = draw(st.floats(allow_nan=False, allow_infinity=False))
        else:
            given_values[field.name] = draw(numbers | st.none() if type(None) in get_args(wanted) else numbers)
    if given_values.get("form") == "logistic":
        del given_values["margin"]
    return kind(**given_values)


@st.composite
def objectives(draw: st.DrawFn) -> Objective:
    chosen = draw(st.lists(terms(), min_size=1, max_size=4, unique=True))
    chosen = [term for term in chosen if term.NAME != "listwise_ce" or Kld(**dataclasses.asdict(term)) not in chosen]
    return Objective(tuple((draw(numbers), term) for term in chosen or [RepCosine()]))


@given(objective=objectives())
@settings(max_examples=200, deadline=None)
def test_parsing_the_text_of_an_objective_gives_the_objective(objective: Objective) -> None:
    assert Objective.parse(str(objective)) == objective
    assert str(Objective.parse(str(objective))) == str(objective)


@given(objective=objectives())
@settings(max_examples=30, deadline=None)
def test_a_section_dumps_the_text_and_reads_it_back(objective: Objective) -> None:
    section = Training(objective=objective)
    assert section.model_dump() == {"objective": str(objective)}
    assert Training.model_validate_json(section.model_dump_json()) == section
    assert Training.model_validate(yaml.safe_load(yaml.safe_dump(section.model_dump(mode="json")))) == section
    assert result_fields(section) == {"objective": str(objective)}


@given(objective=objectives())
@settings(max_examples=30, deadline=None)
def test_every_term_has_a_part_name_of_its_own(objective: Objective) -> None:
    assert len(set(objective.part_names)) == len(objective.terms)


def test_spaces_order_of_parameters_and_weights_of_one_may_be_left_to_taste() -> None:
    plain = Objective.parse("0.9*kld(tau=2, student_tau=4) + infonce(tau=0.08)")
    assert Objective.parse(" 9e-1 * kld( student_tau=4.0,tau = 2 )+1*infonce(tau=.08) ") == plain
    assert str(plain) == "0.9*kld(tau=2, student_tau=4) + infonce(tau=0.08)"
    assert plain.terms == ((0.9, Kld(tau=2.0, student_tau=4.0)), (1.0, InfoNce(tau=0.08)))


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("", "the objective is empty; '0.9*kld(tau=1) + 0.1*infonce(tau=4)' is an example"),
        ("kdl", "did you mean 'kld'?"),
        ("kld(tua=1)", "kld has no parameter 'tua'; did you mean 'tau'?"),
        ("kld(tau=0)", "kld.tau is 0; it must be finite and > 0"),
        ("kld(student_tau=-1)", "kld.student_tau is -1; it must be finite and > 0"),
        ("kld(tau=nan)", "kld.tau is 'nan'; it must be finite"),
        ("kld(tau=warm)", "kld.tau is 'warm'; it must be a number"),
        ("kld(teacher=a/b)", "kld.teacher is 'a/b'; it must be a teacher's name"),
        ("kld + 0.1infonce", "expected * after the weight 0.1, as in 0.5*bce"),
        ("0*kld", "the weight 0 must be > 0; leave the term out instead"),
        ("kld + -0.1*infonce", "the weight -0.1 must be > 0; leave the term out instead"),
        ("kld kld", "expected + between terms, found 'kld'"),
        ("0.5*kld + 0.5*kld(tau=1)", "kld is there twice; add the weights"),
        ("kld(tau=2) + listwise_ce(tau=2)", "kld and listwise_ce(tau=2) with the same parameters have the same gradient"),
        ("infonce(negatives=all)", "infonce.negatives is 'all'; it must be one of batch, own, golds"),
        ("infonce(tau=-2)", "infonce.tau is -2; it must be finite and > 0"),
        ("margin_mse(pairs=some)", "margin_mse.pairs is 'some'; it must be one of gold, all"),
        ("margin_mse(scale=0)", "margin_mse.scale is 0; it must be finite and > 0"),
        ("bce(shift=inf)", "bce.shift is 'inf'; it must be finite"),
        ("partial_ranking(gap=-1)", "partial_ranking.gap is -1; it must be >= 0"),
        ("partial_ranking(margin=2)", "partial_ranking.margin has no part in form=logistic"),
        ("ranknet(weight=map)", "ranknet.weight is 'map'; it must be one of none, ndcg"),
        ("rep_mse(scale=0)", "rep_mse.scale is 0; it must be finite and > 0"),
        ("rep_cosine(tau=1)", "rep_cosine has no parameter 'tau'; it has none"),
        ({"temperature": 1.0}, "is no objective; write it as text, such as '0.9*kld(tau=1) + 0.1*infonce(tau=4)'"),
    ],
)
def test_wrong_objectives_are_refused_with_a_sentence_that_names_the_field(value: Any, sentence: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        Training(objective=value)
    (error,) = refusal.value.errors()
    assert error["loc"] == ("objective",)
    assert sentence in error["msg"]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Objective(()), "an objective needs at least one term"),
        (lambda: Objective(((0.0, Kld()),)), "the weight of kld is 0; it must be finite and > 0"),
        (lambda: Objective(((float("nan"), Kld()),)), "the weight of kld is nan"),
        (lambda: Kld(tau=float("inf")), "kld.tau is inf; it must be finite and > 0"),
        (lambda: Kld(teacher="none"), "kld.teacher is 'none'"),
    ],
)
def test_values_built_in_python_meet_the_same_checks(make: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match="^" + sentence):
        make()


def test_an_objective_says_what_it_needs_of_a_step() -> None:
    assert not Objective.parse("kld + infonce(negatives=own)").needs_batch_scores
    assert Objective.parse("kld + infonce").needs_batch_scores
    assert Objective.parse("infonce(negatives=golds)").needs_batch_scores
    assert Objective.parse("kld + rep_mse").needs_rewrites
    assert not Objective.parse("kld + ranknet").needs_rewrites
    named = Objective.parse("kld(teacher=b) + bce(teacher=a) + ranknet(teacher=b) + kld")
    assert named.teacher_names == ("b", "a")
    assert named.part_names == ("kld.b", "bce.a", "ranknet.b", "kld")


def test_terms_that_could_never_learn_from_a_batch_are_refused() -> None:
    for text in ("kld", "infonce(negatives=own)", "margin_mse", "ranknet"):
        Objective.parse(text).check_batch(passages=2, queries=1)
        with pytest.raises(ValueError, match=r"nothing from 1 a query; raise sampling\.passages to 2 or more"):
            Objective.parse(text).check_batch(passages=1, queries=8)
    Objective.parse("infonce + bce + rep_mse").check_batch(passages=1, queries=2)
    with pytest.raises(ValueError, match="raise global_batch to 2 or more"):
        Objective.parse("infonce(negatives=golds)").check_batch(passages=5, queries=1)


def test_a_teacher_that_is_not_there_is_refused() -> None:
    objective = Objective.parse("kld(teacher=llm)")
    objective.check_teachers(["human", "llm"])
    with pytest.raises(ValueError, match="the objective names the teacher 'lm'; there are human, llm"):
        Objective.parse("kld(teacher=lm)").check_teachers(["human", "llm"])
