# SPDX-License-Identifier: Apache-2.0
"""Characters of a text as documents need them: without controls, in clusters, with widths and in visual order."""

import re
import unicodedata
from collections.abc import Sequence

__all__ = ["clean", "clusters", "is_right_to_left", "visual_order", "width_of"]

# What XML 1.0 has no place for, even escaped, and the control characters that HTML refuses besides.
_UNWRITABLE = re.compile("[^\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_JOINER = "\N{ZERO WIDTH JOINER}"
_SKIN_TONES = range(0x1F3FB, 0x1F400)
# Unicode's bidirectional classes, as far as they matter here; all others are neutral ("N").
_CLASSES = {"L": "L", "R": "R", "AL": "R", "EN": "E", "AN": "A", "ES": "S", "CS": "C", "ET": "T", "NSM": "M"}


def clean(text: str) -> str:
    """The text with single spaces for any white space, and U+FFFD for what XML or HTML cannot hold.

    >>> clean("Tea\\t 4.20\\x00\\n")
    'Tea 4.20�'
    """
    return _UNWRITABLE.sub(_REPLACEMENT, " ".join(text.split()))


def clusters(text: str) -> list[str]:
    """The text split into what readers perceive as characters: marks, joiners and what they join stay together.

    >>> clusters("e\\u0301t")
    ['é', 't']
    """
    found: list[str] = []
    for character in text:
        joins = unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf") or ord(character) in _SKIN_TONES
        if found and " " not in (character, found[-1]) and (joins or found[-1][-1] == _JOINER):
            found[-1] += character
        else:
            found.append(character)
    return found


def width_of(cluster: str) -> int:
    """Width of a cluster in half-widths: 2 for East Asian wide characters and emoji, 1 for others."""
    return 2 if unicodedata.east_asian_width(cluster[0]) in "WF" else 1


def is_right_to_left(text: str) -> bool:
    """Whether a text reads from right to left, by its first letter (rules P2 and P3 of the bidirectional algorithm).

    >>> is_right_to_left("12 שקל"), is_right_to_left("NIS שקל")
    (True, False)
    """
    strong = (unicodedata.bidirectional(character) for character in text)
    return next((kind != "L" for kind in strong if kind in ("L", "R", "AL")), False)


def visual_order(found: Sequence[str]) -> list[int]:
    """Indices of clusters as they stand from left to right, by the Unicode bidirectional algorithm (UAX #9).

    One paragraph, without embeddings, isolates and paired brackets, which text in pictures does not need.

    >>> visual_order(clusters("a אב 1"))
    [0, 1, 3, 2, 4, 5]
    """
    if not any(unicodedata.bidirectional(cluster[0]) in ("R", "AL", "AN") for cluster in found):
        return list(range(len(found)))
    base = int(is_right_to_left("".join(found)))
    kinds = _resolved(found, "R" if base else "L")
    levels = [base + 1 if kind == "L" and base else 1 if kind == "R" else 0 if kind == "L" else 2 for kind in kinds]
    order = list(range(len(found)))
    for level in range(max(levels), 0, -1):  # rule L2: reverse each run of this level or a higher one
        start = 0
        while start < len(order):
            end = start
            while end < len(order) and levels[order[end]] >= level:
                end += 1
            order[start:end] = order[start:end][::-1]
            start = end + 1
    return order


def _resolved(found: Sequence[str], base: str) -> list[str]:
    """The class of each cluster, L, R, E (European number) or A (Arabic number): rules W1 to W7, N1 and N2."""
    kinds = [_CLASSES.get(unicodedata.bidirectional(cluster[0]), "N") for cluster in found]
    strong, is_arabic = base, False
    for index, cluster in enumerate(found):
        if kinds[index] == "M":
            kinds[index] = kinds[index - 1] if index else base
        if kinds[index] in "LR":
            strong, is_arabic = kinds[index], unicodedata.bidirectional(cluster[0]) == "AL"
        if kinds[index] == "E":
            kinds[index] = "A" if is_arabic else "E"
    for index in range(1, len(kinds) - 1):
        before, kind, after = kinds[index - 1 : index + 2]
        if before == after and before in {"C": "EA", "S": "E"}.get(kind, ""):
            kinds[index] = before
    for match in re.finditer("T*E[ET]*", "".join(kinds)):
        kinds[match.start() : match.end()] = "E" * len(match[0])
    strong = base
    for index, kind in enumerate(kinds):
        strong = kind if kind in "LR" else strong
        if kind == "E" and strong == "L":
            kinds[index] = "L"
    sides = {"L": "L", "R": "R", "E": "R", "A": "R"}
    for match in re.finditer("[NSCTM]+", "".join(kinds)):
        before = sides[kinds[match.start() - 1]] if match.start() else base
        after = sides[kinds[match.end()]] if match.end() < len(kinds) else base
        kinds[match.start() : match.end()] = (before if before == after else base) * len(match[0])
    return kinds
