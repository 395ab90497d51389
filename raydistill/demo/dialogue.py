"""Conversations about the demo's world: who is asked about next, how it is referred to, what is answered.

A turn keeps the subject, follows an answer ("who directed it?" - "where was she born?"), returns to an earlier entity or
switches to a new one. References are only made in ways that the rules below can resolve: a pronoun means the latest
entity of its class (person or thing), "the town" the latest of that kind, an ellipsis ("and the population?") the latest of
the kind that has such an attribute. Every turn carries its self-contained form, which trains the tiny teachers (on other
worlds than the demo's) and is never written to the demo's files.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from raydistill.demo.kinds import Attribute
from raydistill.demo.wording import ASIDES, POLITE, SORRY
from raydistill.demo.world import Entity, World, WorldSize, capitalised, sentence

OBJECT_CUES = frozenset({"of", "to", "employed"})
OBJECT_PRONOUN = {"he": "him", "she": "her", "it": "it"}


@dataclass(frozen=True, slots=True)
class Exchange:
    """A turn: what was said, the self-contained question, the passages that answer it (none when unanswerable)."""

    query_id: str
    question: str
    answer: str
    rewrite: str
    gold: tuple[str, ...]
    value: str
    move: str


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation with its split, train or test."""

    conversation_id: str
    split: str
    exchanges: tuple[Exchange, ...]

    def record(self) -> dict[str, object]:
        """Return the MTRAG form: what a user would have, without rewrites."""
        turns = [
            {"turn_id": depth, "query_id": exchange.query_id, "user": exchange.question, "agent": exchange.answer}
            for depth, exchange in enumerate(self.exchanges, start=1)
        ]
        return {"conversation_id": self.conversation_id, "split": self.split, "turns": turns}


@dataclass
class _State:
    """What has been talked about; `mentioned` is oldest first and holds subjects and answers."""

    mentioned: list[Entity] = field(default_factory=list)
    subjects: list[Entity] = field(default_factory=list)
    answer: Entity | None = None
    attribute: Attribute | None = None
    asked: set[tuple[int, str]] = field(default_factory=set)

    def mention(self, entity: Entity) -> None:
        if entity in self.mentioned:
            self.mentioned.remove(entity)
        self.mentioned.append(entity)

    def latest(self, *, kind: str = "", person: bool | None = None) -> Entity | None:
        for entity in reversed(self.mentioned):
            if kind and entity.kind.noun == kind:
                return entity
            if person is not None and (entity.kind.noun == "person") == person:
                return entity
        return None


def make_dialogues(world: World, size: WorldSize) -> tuple[Dialogue, ...]:
    """Return the train and then the test conversations of a world; the same for the same seed."""
    splits = ["train"] * size.train_conversations + ["test"] * size.test_conversations
    return tuple(
        make_dialogue(world, f"demo{world.seed}-{number:04d}", split, size.typo_share) for number, split in enumerate(splits)
    )


def make_dialogue(
    world: World, conversation_id: str, split: str, typo_share: float, turns: tuple[int, int] = (4, 9)
) -> Dialogue:
    """Return one conversation with a number of turns between the two bounds, inclusive."""
    rng = random.Random(f"dialogue {world.seed} {conversation_id}")
    state = _State()
    exchanges = []
    for depth in range(1, rng.randint(*turns) + 1):
        query_id = f"{conversation_id}<::>{depth}"
        exchanges.append(_exchange(rng, world, state, query_id, typo_share))
    return Dialogue(conversation_id, split, tuple(exchanges))


def _exchange(rng: random.Random, world: World, state: _State, query_id: str, typo_share: float) -> Exchange:
    move, entity = _next_subject(rng, world, state)
    attribute = _next_attribute(rng, state, entity, move)
    question = _question(rng, state, entity, attribute, move)
    fact = (entity.number, attribute.name)
    value = world.values.get(fact, "")
    state.mention(entity)
    state.subjects.append(entity)
    state.answer = world.related.get(fact)
    state.attribute = attribute
    state.asked.add(fact)
    if state.answer is not None:
        state.mention(state.answer)
    return Exchange(
        query_id=query_id,
        question=_with_noise(rng, question, entity, typo_share),
        answer=_answer(rng, world, entity, attribute, value),
        rewrite=sentence(attribute.ask[0].format(e=entity.name)),
        gold=world.gold[fact] if value else (),
        value=value,
        move=move,
    )


def _next_subject(rng: random.Random, world: World, state: _State) -> tuple[str, Entity]:
    if not state.subjects:
        return "open", rng.choice(world.entities)
    last = state.subjects[-1]
    moves = {"stay": 0.42, "parallel": 0.08, "switch": 0.16}
    if state.answer is not None:
        moves["follow"] = 0.5
    earlier = [
        entity
        for entity in dict.fromkeys(state.subjects)
        if entity not in (last, state.answer) and state.latest(kind=entity.kind.noun) is entity
    ]
    if earlier:
        moves["return"] = 0.2
    move = rng.choices(list(moves), weights=list(moves.values()))[0]
    if move == "stay":
        return move, last
    if move == "follow" and state.answer is not None:
        return move, state.answer
    if move == "return":
        return move, rng.choice(earlier)
    pool = world.of_kind(last.kind.noun) if move == "parallel" else world.entities
    fresh = [entity for entity in pool if entity not in state.mentioned]
    return move, rng.choice(fresh or list(pool))


def _next_attribute(rng: random.Random, state: _State, entity: Entity, move: str) -> Attribute:
    if move == "parallel" and state.attribute is not None:
        return state.attribute
    fresh = [attribute for attribute in entity.kind.attributes if (entity.number, attribute.name) not in state.asked]
    return rng.choice(fresh or list(entity.kind.attributes))


def _question(rng: random.Random, state: _State, entity: Entity, attribute: Attribute, move: str) -> str:
    ask = rng.choice(attribute.ask)
    noun = attribute.noun
    if move == "parallel":
        return rng.choice(("and what about {e}?", "how about {e}?", "the same question for {e}.")).format(e=entity.name)
    if move == "return":
        frame = rng.choice(("back to {r}: {q}", "coming back to {r}, {q}", "about {r} again: {q}"))
        reference = rng.choice((f"the {entity.kind.noun}", entity.name))
        asked = rng.choice((f"what about the {noun}?", _referring(ask, entity, entity.pronoun)))
        return frame.format(r=reference, q=asked)
    if move in ("open", "switch"):
        if move == "switch" and rng.random() < 0.25:
            return f"let us talk about {entity.name}. {_referring(ask, entity, entity.pronoun)}"
        return ask.format(e=entity.name)
    return _contextual(rng, state, entity, ask, noun)


def _contextual(rng: random.Random, state: _State, entity: Entity, ask: str, noun: str) -> str:
    """Return a question about the last subject or the last answer that the state resolves without ambiguity."""
    options: list[tuple[float, str]] = [(0.12, ask.format(e=entity.name))]
    is_person = entity.kind.noun == "person"
    if state.latest(person=is_person) is entity:
        options.append((0.45, _referring(ask, entity, entity.pronoun)))
    if state.latest(kind=entity.kind.noun) is entity:
        options.append((0.15, _referring(ask, entity, f"this {entity.kind.noun}")))
        ellipsis = rng.choice((f"and the {noun}?", f"what about the {noun}?", f"the {noun}?"))
        options.append((0.25, ellipsis))
    if is_person:
        options.append((0.1, ask.format(e=entity.name.split()[-1])))
    return rng.choices([text for _, text in options], weights=[weight for weight, _ in options])[0]


def _referring(ask: str, entity: Entity, reference: str) -> str:
    """Return the question with {e} replaced by a pronoun in the right case, or by the reference as it is."""
    words = ask.split()
    place = next(index for index, word in enumerate(words) if "{e}" in word)
    is_object = place > 0 and words[place - 1] in OBJECT_CUES
    return ask.format(e=OBJECT_PRONOUN[entity.pronoun] if is_object and reference == entity.pronoun else reference)


def _answer(rng: random.Random, world: World, entity: Entity, attribute: Attribute, value: str) -> str:
    if not value:
        return rng.choice(SORRY)
    mention = entity.name if rng.random() < 0.6 else f"the {entity.kind.noun}"
    answer = sentence(rng.choice(attribute.state).format(e=mention, v=value))
    if rng.random() < 0.25:
        answer += " " + rng.choice(ASIDES).format(o=rng.choice(world.entities).name)
    return answer


def _with_noise(rng: random.Random, question: str, entity: Entity, typo_share: float) -> str:
    if rng.random() < typo_share:
        question = _mistyped(rng, question, set(entity.name.split()))
    if rng.random() < 0.15:
        return f"{sentence(rng.choice(POLITE))} {question}"
    return sentence(question)


def _mistyped(rng: random.Random, question: str, kept: set[str]) -> str:
    """Return the question with two neighbouring letters of one ordinary word swapped; names are left alone."""
    words = question.split(" ")
    places = [place for place, word in enumerate(words) if len(word) >= 5 and word.isalpha() and word == word.lower()]
    places = [place for place in places if capitalised(words[place]) not in kept]
    if not places:
        return question
    place = rng.choice(places)
    word = words[place]
    cut = rng.randint(1, len(word) - 3)
    words[place] = word[:cut] + word[cut + 1] + word[cut] + word[cut + 2 :]
    return " ".join(words)
