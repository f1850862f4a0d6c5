"""Noun phrases of English sentences, found by closed classes of words alone, without a parser."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

_DETERMINERS = (
    "a an the this that these those my your his her its our their some any each every another "
    "no both all many several few one two three four five six seven eight nine ten"
)
_OTHERS = (
    "i you he she it we they me him them us who whom whose which what when where why how "
    "and or but so because since although though while until if unless as than then that "
    "of in on at by for with to from into onto over under about after before between through "
    "during without within against near behind up down out off away around across along "
    "is are was were be been being am has have had do does did can could will would shall should "
    "may might must not n't very too also just only even still always never often soon now there "
    "here more most much less least such"
)
_VERBS = (
    "began bit blew broke brought built bought burst came caught chose cut did drew drank drove "
    "ate fell fed felt fled flew forgot fought found froze gave got grew heard held hid hit hung "
    "hurt kept knew laid lay led left lent let lit lost made meant met paid put ran rang read "
    "rode rose said sang sank sat saw sent set shook shot shut slept slid sold spent spoke spun "
    "stood stole struck stuck swam swept swore taught tore thought threw told took understood "
    "went woke won wore wrote"
)
DETERMINERS = frozenset(_DETERMINERS.split())
"""Words with which a noun phrase begins."""

FUNCTION_WORDS = DETERMINERS | frozenset(_OTHERS.split())
"""Words that do not belong to a noun phrase after its determiner."""

PAST = frozenset(_VERBS.split())
"""Irregular verbs, which follow a noun phrase, as regular ones do."""

CONTRACTION = re.compile(r"(n't|'(ll|ve|re|d|m))$", re.IGNORECASE)
VERB = re.compile(r".{2,}(ed|ing|ly)$")
"""Usual ends of words that follow a noun phrase, as opposed to those that are part of it."""

EDGES = ".,;:!?\"'()"
LONGEST = 3
"""Words after a determiner."""


def noun_phrases(text: str) -> list[str]:
    """Return the likely noun phrases of a text, in their order, each once."""
    words = text.split()
    places = sorted({*_determined(words), *_names(words)})
    longer = (place for one in places for place in _longer(words, *one))
    found = (words[start:end] for start, end in sorted({*places, *longer}))
    phrases = (" ".join(part).strip(EDGES) for part in found)
    return list(dict.fromkeys(_without_possessive(phrase) for phrase in phrases if phrase))


def _determined(words: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the places of determiners with the words that follow them."""
    for start, word in enumerate(words):
        if word.lower() not in DETERMINERS:
            continue
        end = start + 1
        while end < len(words) and end - start <= LONGEST and _continues(words, start, end):
            end += 1
        if end > start + 1:
            yield start, end


def _longer(words: Sequence[str], start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the places of longer phrases: a bag `of flour`, Ann's `parents`."""
    last = words[end - 1]
    if last.endswith("'s") and end < len(words) and _continues(words, end - 1, end):
        yield start, end + 1
    if last[-1] in EDGES or words[end : end + 1] != ["of"] or end + 1 == len(words):
        return
    ends = [found for begin, found in _determined(words) if begin == end + 1]
    if not ends and _continues(words, end, end + 1):
        ends = [end + 2]
    yield from ((start, found) for found in ends)


def _continues(words: Sequence[str], start: int, end: int) -> bool:
    """Return whether a noun phrase that began at `start` goes on with the word at `end`."""
    word, before = words[end].strip(EDGES).lower(), words[end - 1]
    if end > start + 1 and (before[-1] in EDGES or word in PAST or VERB.match(word)):
        return False
    return bool(word) and word not in FUNCTION_WORDS and not CONTRACTION.search(word)


def _names(words: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the places of words in a row that begin with capitals, and of two joined by `and`."""
    runs = []
    start: int | None = None
    for place, word in enumerate([*words, ""]):
        bare = word.strip(EDGES)
        is_name = bare[:1].isupper() and bare.lower() not in FUNCTION_WORDS
        if is_name and start is None:
            start = place
        ends = not is_name or word[-1:] in EDGES
        if start is not None and ends:
            runs.append((start, place + is_name))
            start = None
    yield from runs
    for (first, end), (begin, last) in pairwise(runs):
        if begin == end + 1 and words[end] == "and":
            yield first, last


def _without_possessive(phrase: str) -> str:
    return re.sub(r"'s?$", "", phrase)
