"""The index of systems: the one place for what each paper is, in which room it lives and whom it helps.

README, docs, the command line and the tests read it. It imports nothing heavy, so that `retinue systems` answers at once.
"""

import math
import re
from collections import Counter

from retinue.catalog_entries import ROOMS, SYSTEMS, System
from retinue.errors import unknown

__all__ = ["ROOMS", "System", "system", "systems"]


def systems(query: str = "") -> list[System]:
    """Find systems by words, best first; all of them, in the catalogue's order, for an empty query.

    The ranking is BM25 (Robertson and Zaragoza 2009, equation 3.15) over what the catalogue says of each system; its line of use and
    its slug count most. A system in which none of the words occurs is left out.

    >>> [system.slug for system in systems("few labels")][:2]
    ['simclr-v2', 'rotnet']
    """
    words = set(_words(query))
    if not words:
        return list(SYSTEMS)
    documents = [Counter(_words(_text(system))) for system in SYSTEMS]
    mean_length = sum(document.total() for document in documents) / len(documents)
    scored = []
    for system, document in zip(SYSTEMS, documents, strict=True):
        score = 0.0
        for word in words & document.keys():
            containing = sum(word in other for other in documents)
            rarity = math.log(1 + (len(documents) - containing + 0.5) / (containing + 0.5))
            count = document[word]
            score += rarity * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * document.total() / mean_length))  # k1 = 1.2, b = 0.75
        if score > 0:
            scored.append((score, system))
    return [system for _, system in sorted(scored, key=lambda pair: -pair[0])]


def system(slug: str) -> System:
    """Return one system by its slug.

    Raises:
        ArgumentError: if there is none; the near misses are named.
    """
    for candidate in SYSTEMS:
        if candidate.slug == slug:
            return candidate
    raise unknown("catalog", "system", slug, [candidate.slug for candidate in SYSTEMS], "All systems: retinue systems.")


def _text(system: System) -> str:
    have, want = ROOMS[system.room]
    slug = f"{system.slug} {system.slug.replace('-', ' ')}"
    return " ".join([*[system.use] * 3, *[slug] * 3, system.title, system.authors, system.room, have, want, *system.parts])


_STOP = frozenset(
    re.findall(
        r"\w+",
        "a an and any are as at be but by can could did do does each for from have how i if in is it its like may me "
        "more my no not of on one or our so than that the them then they this to too use want was what when where which "
        "who why will with without you your",
    )
)


def _words(text: str) -> list[str]:
    """Split into lower-case words without endings that carry no meaning here ("labels", "labelled" and "labelling" are one word)."""
    found = re.findall(r"[a-z0-9]+", text.lower())
    return [_stem(word) for word in found if word not in _STOP]


def _stem(word: str) -> str:
    for ending in ("ations", "ation", "ings", "ing", "ied", "ies", "ed", "es", "s", "e", "y"):
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            word = word[: -len(ending)]
            break
    return word[:-1] if len(word) > 4 and word[-1] == word[-2] else word
