"""The demo's synthetic world: entities, facts, passages in varied wording, and the files of a data set made from them.

Everything is drawn from one seed; another seed gives other names, facts, passages and conversations. The words come
from `wording`, the conversations from `dialogue`. No model and no Ray here.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from raydistill.demo.kinds import KINDS, Attribute, Kind
from raydistill.demo.wording import FILLERS, name_words

SHARES = {"person": 0.28, "town": 0.2, "film": 0.13, "company": 0.13, "animal": 0.13, "book": 0.13}
SMALL_WORDS = frozenset({"the", "of", "at", "from", "to", "and", "a", "last"})


@dataclass(frozen=True, slots=True)
class WorldSize:
    """How much is generated.

    Attributes:
        entities: entities of all kinds; about 14 passages each.
        train_conversations, test_conversations: conversations of 4 to 9 turns.
        unknown_share: share of the facts that no passage states; asking for them has no answer.
        typo_share: share of the questions with a typing error.
    """

    entities: int = 260
    train_conversations: int = 250
    test_conversations: int = 60
    unknown_share: float = 0.08
    typo_share: float = 0.06


@dataclass(frozen=True, slots=True)
class Entity:
    """A named thing. `pronoun` is it, he or she."""

    number: int
    kind: Kind
    name: str
    pronoun: str


Fact = tuple[int, str]  # entity number, attribute name


@dataclass(frozen=True, slots=True)
class WorldPassage:
    """A passage and the facts it states."""

    passage_id: str
    title: str
    text: str
    facts: frozenset[Fact]


@dataclass(frozen=True)
class World:
    """Entities, the value of every known fact as text, the entity behind it for relations, passages, gold passages."""

    seed: int
    entities: tuple[Entity, ...]
    values: dict[Fact, str]
    related: dict[Fact, Entity]
    passages: tuple[WorldPassage, ...]
    gold: dict[Fact, tuple[str, ...]]

    def of_kind(self, noun: str) -> list[Entity]:
        """Return the entities of a kind, in order of number."""
        return [entity for entity in self.entities if entity.kind.noun == noun]


def make_world(seed: int, size: WorldSize) -> World:
    """Return the world of a seed."""
    rng = random.Random(f"world {seed}")
    entities = _entities(rng, size.entities)
    values, related = _facts(rng, entities, size.unknown_share)
    passages = _passages(rng, entities, values)
    gold: dict[Fact, list[str]] = {}
    for passage in passages:
        for fact in passage.facts:
            gold.setdefault(fact, []).append(passage.passage_id)
    return World(seed, entities, values, related, passages, {fact: tuple(sorted(ids)) for fact, ids in gold.items()})


def capitalised(name: str) -> str:
    """Return a name as it is written in a text: "port bala" becomes "Port Bala", small words stay small."""
    return " ".join(word if word in SMALL_WORDS else word.capitalize() for word in name.split())


def sentence(text: str) -> str:
    """Return the text with a capital first letter."""
    return text[:1].upper() + text[1:]


def _entities(rng: random.Random, count: int) -> tuple[Entity, ...]:
    words = rng.sample(
        name_words(), max(12, min(len(name_words()), int(count * 0.8)))
    )  # fewer words than entities: names share words
    entities: list[Entity] = []
    taken: set[str] = set()
    for noun, share in SHARES.items():
        for _ in range(max(2, round(count * share))):
            name = _fresh_name(rng, KINDS[noun], words, taken)
            pronoun = rng.choice(("he", "she")) if noun == "person" else "it"
            entities.append(Entity(len(entities), KINDS[noun], name, pronoun))
    return tuple(entities)


def _fresh_name(rng: random.Random, kind: Kind, words: list[str], taken: set[str]) -> str:
    while True:
        first, second = rng.sample(words, 2)
        name = capitalised(rng.choice(kind.names).format(a=first, b=second))
        if name not in taken:
            taken.add(name)
            return name


def _facts(
    rng: random.Random, entities: tuple[Entity, ...], unknown_share: float
) -> tuple[dict[Fact, str], dict[Fact, Entity]]:
    values: dict[Fact, str] = {}
    related: dict[Fact, Entity] = {}
    by_kind = {noun: [entity for entity in entities if entity.kind.noun == noun] for noun in KINDS}
    for entity in entities:
        for attribute in entity.kind.attributes:
            fact = (entity.number, attribute.name)
            if rng.random() < unknown_share:
                continue
            if attribute.value in by_kind:
                related[fact] = rng.choice(by_kind[attribute.value])
                values[fact] = related[fact].name
            else:
                values[fact] = _plain_value(rng, attribute)
    return values, related


def _plain_value(rng: random.Random, attribute: Attribute) -> str:
    if attribute.value == "year":
        return str(rng.randint(1700, 1999))
    if attribute.value == "number":
        return str(rng.randint(2, 99) * 100 + rng.randint(0, 99))
    return rng.choice(attribute.value.split(","))


def _passages(rng: random.Random, entities: tuple[Entity, ...], values: dict[Fact, str]) -> tuple[WorldPassage, ...]:
    drafts: list[tuple[str, str, frozenset[Fact]]] = []
    for entity in entities:
        known = [attribute for attribute in entity.kind.attributes if (entity.number, attribute.name) in values]
        for attribute in known:
            copies = rng.choices((1, 2, 3), weights=(4, 4, 2))[0]
            for statement in rng.sample(attribute.state, min(copies, len(attribute.state))):
                second = rng.choice(known) if rng.random() < 0.25 else None
                drafts.append(_fact_passage(rng, entity, attribute, statement, second, entities, values))
        for _ in range(rng.randint(2, 5)):
            drafts.append(_idle_passage(rng, entity, entities))
    rng.shuffle(drafts)
    return tuple(WorldPassage(f"p{number:06d}", title, text, facts) for number, (title, text, facts) in enumerate(drafts))


def _fact_passage(
    rng: random.Random,
    entity: Entity,
    attribute: Attribute,
    statement: str,
    second: Attribute | None,
    entities: tuple[Entity, ...],
    values: dict[Fact, str],
) -> tuple[str, str, frozenset[Fact]]:
    facts = {(entity.number, attribute.name)}
    titled = rng.random() < 0.5
    mention = f"the {entity.kind.noun}" if titled and rng.random() < 0.5 else entity.name
    sentences = [statement.format(e=mention, v=values[entity.number, attribute.name])]
    if second is not None and second is not attribute:
        fact = (entity.number, second.name)
        facts.add(fact)
        sentences.append(rng.choice(second.state).format(e=f"the {entity.kind.noun}", v=values[fact]))
    for _ in range(rng.randint(0, 2)):
        sentences.insert(rng.randint(0, len(sentences)), _filler(rng, entity, entities))
    return (entity.name if titled else ""), _joined(sentences), frozenset(facts)


def _idle_passage(rng: random.Random, entity: Entity, entities: tuple[Entity, ...]) -> tuple[str, str, frozenset[Fact]]:
    """Return a passage that mentions entities without stating a fact: a distractor for every question about them."""
    subjects = [entity, entity, rng.choice(entities)]
    sentences = [_filler(rng, subject, entities) for subject in subjects[: rng.randint(2, 3)]]
    return (entity.name if rng.random() < 0.3 else ""), _joined(sentences), frozenset()


def _filler(rng: random.Random, entity: Entity, entities: tuple[Entity, ...]) -> str:
    return rng.choice(FILLERS).format(e=entity.name, o=rng.choice(entities).name)


def _joined(sentences: list[str]) -> str:
    return " ".join(sentence(text) for text in sentences)


def generate(seed: int, folder: Path, size: WorldSize | None = None) -> World:
    """Write corpus.jsonl, conversations.jsonl (MTRAG form) and qrels.tsv (BEIR) of a seed's world; return the world."""
    from raydistill.demo.dialogue import make_dialogues

    size = size or WorldSize()
    world = make_world(seed, size)
    dialogues = make_dialogues(world, size)
    folder.mkdir(parents=True, exist_ok=True)
    _write_lines(
        folder / "corpus.jsonl",
        (json.dumps({"_id": p.passage_id, "title": p.title, "text": p.text}) for p in world.passages),
    )
    _write_lines(folder / "conversations.jsonl", (json.dumps(dialogue.record()) for dialogue in dialogues))
    judged = (
        f"{exchange.query_id}\t{passage}\t1"
        for dialogue in dialogues
        for exchange in dialogue.exchanges
        for passage in exchange.gold
    )
    _write_lines(folder / "qrels.tsv", ["query-id\tcorpus-id\tscore", *judged])
    return world


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
