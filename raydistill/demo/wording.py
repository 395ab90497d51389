"""The phrases around the facts of the demo's world, and its invented name words. Data only; kinds of entity and what is said
of them live in `kinds`."""

from __future__ import annotations

from raydistill.demo.kinds import KINDS

FILLERS = (
    "A portrait of {e} hangs in the library beside one of {o}.",
    "{e} is often named together with {o}.",
    "A letter to {o} mentions {e} only once.",
    "Many visitors confuse {e} with {o}.",
    "Little was known of {e} before {o} became famous.",
    "The archive keeps the papers on {e} next to those on {o}.",
    "An old song about {e} is still heard today.",
    "There is much debate about {e} among scholars.",
    "Schools teach the story of {e} every spring.",
    "The newspaper wrote about {e} and {o} on the same page.",
)

ASIDES = (
    "By the way, {o} is mentioned there too.",
    "The same source also speaks of {o}.",
    "Some people confuse it with {o}.",
    "I hope that helps.",
    "Let me know if you need more.",
)

SORRY = (
    "I am sorry, I do not have any information about that.",
    "The documents do not say anything about this.",
    "I could not find an answer to that question.",
)

POLITE = (
    "thanks!",
    "great, thank you.",
    "ok.",
    "interesting!",
    "i see.",
    "good to know.",
    "hello!",
    "please tell me,",
    "hm,",
)

NAME_ONSETS = (
    "b",
    "br",
    "d",
    "dr",
    "f",
    "g",
    "gr",
    "h",
    "k",
    "kr",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "sk",
    "st",
    "t",
    "tr",
    "v",
    "z",
)
NAME_VOWELS = ("a", "e", "i", "o", "u", "ai", "ei")
NAME_CODAS = ("l", "n", "r", "s", "th", "m", "nd", "rk", "x", "v")
NAME_ENDINGS = ("a", "o", "en", "ar", "is", "on", "el", "us", "ith", "or", "ane", "ovi")


def name_words(count: int = 800) -> tuple[str, ...]:
    """Return `count` invented name words, always the same ones: a syllable and an ending, none an English word used here."""
    taken = known_words()
    words: list[str] = []
    total = len(NAME_ONSETS) * len(NAME_VOWELS) * len(NAME_CODAS) * len(NAME_ENDINGS)
    step = 7919  # a prime that does not divide the total: walks over all combinations in a scattered order
    for position in range(total):
        rest = position * step % total
        rest, ending = divmod(rest, len(NAME_ENDINGS))
        rest, coda = divmod(rest, len(NAME_CODAS))
        onset, vowel = divmod(rest, len(NAME_VOWELS))
        word = NAME_ONSETS[onset] + NAME_VOWELS[vowel] + NAME_CODAS[coda] + NAME_ENDINGS[ending]
        if word not in taken:
            words.append(word)
        if len(words) == count:
            return tuple(words)
    raise ValueError(f"only {len(words)} name words exist, {count} were asked for; lower the count")


def known_words() -> frozenset[str]:
    """Return every ordinary word of the world's texts, lower-case."""
    texts: list[str] = [*FILLERS, *ASIDES, *SORRY, *POLITE, *QUESTION_FRAMES]
    for kind in KINDS.values():
        texts += [kind.noun, *kind.names]
        for attribute in kind.attributes:
            texts += [attribute.noun, attribute.value, *attribute.ask, *attribute.state]
    cleaned = "".join(letter if letter.isalpha() else " " for text in texts for letter in [*text.lower(), " "])
    return frozenset(cleaned.split())


QUESTION_FRAMES = (
    "and the {noun}?",
    "what about the {noun}?",
    "the {noun}?",
    "and what about {e}?",
    "how about {e}?",
    "the same question for {e}.",
    "let us talk about {e}.",
    "back to {r}:",
    "coming back to {r},",
    "about {r} again:",
    "he she it they him her its his that this the same one",
)
