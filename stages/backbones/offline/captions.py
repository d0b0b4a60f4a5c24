"""The caption grammar: sentences for each graded behaviour of each domain, some of them kept for testing.

A concept (`behaviours` of a body's record) has phrases; a phrase in the -ing form is put into
sentences ("a robot walking", "make the walker walk"), a phrase with a leading '=' is a noun ("a
headstand") and is only labelled. The first ten concepts of a domain are its behaviour classes, on which
retrieval is measured with `held_out` phrases, which no training sentence contains.
The tasks' default prompts are never trained on either.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from stages.worlds import BODIES

CLASSES = 10

# Base forms that are not the -ing form cut short, with or without its doubled consonant.
_BASE = {
    "balancing": "balance", "moving": "move", "lying": "lie", "racing": "race", "raising": "raise", "taking": "take",
    "striding": "stride", "leaping": "leap", "losing": "lose", "collapsing": "collapse", "reversing": "reverse",
    "toppling": "topple", "lunging": "lunge", "tumbling": "tumble", "wriggling": "wriggle", "struggling": "struggle",
    "rotating": "rotate", "hurtling": "hurtle", "ambling": "amble", "diving": "dive",
    "having": "have", "posing": "pose", "reclining": "recline", "facing": "face", "travelling": "travel",
}  # fmt: skip

_ENDINGS = ("{p} clean", "{p} cleanly", "{p} properly", "{p} well")
_GERUND = (
    "a {body} {p}", "the {body} is {p}", "{body} {p}", "{body} {p} clean", "a video of a {body} {p}", "it is {p}",
    "a simulated {body} {p}", "this {body} is {p}", "we see a {body} {p}", "someone {p}",
)  # fmt: skip
_IMPERATIVE = (
    "make the {body} {p}", "{body} {p}", "{body} {p} clean", "please {p}", "try to {p}", "the {body} should {p}",
    "learn to {p}", "your task is to {p}",
)  # fmt: skip
_NOUN = ("a {body}: {p}", "{body}, {p}", "a video of {p}", "{p} by a {body}", "the {body} shows {p}")


@dataclass(frozen=True)
class Concept:
    """One behaviour of a domain in words: the sentences trained on, and those kept for testing."""

    name: str
    captions: tuple[str, ...]
    held_out: tuple[str, ...]


def base_form(phrase: str) -> str:
    """'walking fast' → 'walk fast'."""
    verb, _, rest = phrase.partition(" ")
    base = _BASE.get(verb) or verb.removesuffix("ing")
    if verb not in _BASE and base[-1] == base[-2] and base[-1] not in "ls":
        base = base[:-1]  # runn, sitt
    return f"{base} {rest}".strip()


def sentences(phrase: str, nouns: tuple[str, ...]) -> list[str]:
    """The phrase alone in both forms, and in a few templates that differ from phrase to phrase."""
    if phrase.startswith("="):
        return [phrase[1:], *_filled(phrase[1:], _NOUN, nouns, 3)]
    base = base_form(phrase)
    found = [phrase, *_filled(phrase, _GERUND, nouns, 3), *_filled(phrase, _ENDINGS, nouns, 1)]
    found += [base, *_filled(base, _IMPERATIVE, nouns, 3), *_filled(base, _ENDINGS, nouns, 1)]
    return list(dict.fromkeys(found))


def _filled(form: str, templates: tuple[str, ...], nouns: tuple[str, ...], count: int) -> list[str]:
    """`count` neighbouring templates, the first chosen by a checksum of the words: the same in every run."""
    first = zlib.crc32(form.encode())
    chosen = [templates[(first + i) % len(templates)] for i in range(count)]
    return [t.format(p=form, body=nouns[(first // 7 + i) % len(nouns)]) for i, t in enumerate(chosen)]


def grammar(domain: str, exclude: frozenset[str] = frozenset()) -> list[Concept]:
    """The concepts of a domain, its ten behaviour classes first.

    Args:
        exclude: sentences never to train on (the tasks' prompts), compared without case.
    """
    body, concepts = BODIES[domain], []
    for name, (trained, held_out) in body.phrases.items():
        captions = [s for phrase in trained for s in sentences(phrase, body.nouns)]
        kept = tuple(dict.fromkeys(s for s in captions if s.lower() not in exclude))
        concepts.append(Concept(name, kept, tuple(p.removeprefix("=") for p in held_out)))
    return concepts


def class_names(domain: str) -> list[str]:
    """The ten behaviour classes on which retrieval is measured."""
    return list(BODIES[domain].phrases)[:CLASSES]
