# SPDX-License-Identifier: Apache-2.0
"""How well text was read: edit distance, character error rate, and end-to-end figures over boxes and texts.

End to end as in ICDAR's robust reading competitions: boxes are paired one to one with an IoU above 0.5, then a pair
counts as a match where the texts are equal, case folded. `words` follows task 2 of SROIE (Huang et al., ICDAR 2019):
the words of an image, wherever they are.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.backend.evaluation.figures import Counts
from ocdserve.backend.evaluation.matching import assign, find_overlaps


@dataclass(frozen=True)
class ReadingCounts:
    """Counts of one image, or summed over several; every figure is computed from the sums.

    Attributes:
        lines: Matches of box and text; detections and truths as for boxes alone.
        words: Words of all texts of an image, split at white space; a match is a word that is in both.
        paired: Boxes that are paired with a truth, whatever they read.
        edits: Edit distances of the pairs' texts, summed.
        characters: Characters of the truths that are paired.
        missed: Characters of the truths that are not.
    """

    lines: Counts = field(default_factory=Counts)
    words: Counts = field(default_factory=Counts)
    paired: int = 0
    edits: int = 0
    characters: int = 0
    missed: int = 0

    def __add__(self, other: "ReadingCounts") -> "ReadingCounts":
        return ReadingCounts(
            self.lines + other.lines,
            self.words + other.words,
            self.paired + other.paired,
            self.edits + other.edits,
            self.characters + other.characters,
            self.missed + other.missed,
        )

    @property
    def cer(self) -> float:
        """Character error rate of the lines whose boxes are paired; 0 without any."""
        return self.edits / self.characters if self.characters else 0.0

    @property
    def end_to_end_cer(self) -> float:
        """Character error rate of all lines, each character of an unpaired one being an error; 0 without any."""
        everything = self.characters + self.missed
        return (self.edits + self.missed) / everything if everything else 0.0

    @property
    def exact(self) -> float:
        """Share of the paired lines whose texts are equal; 0 without any."""
        return self.lines.matched / self.paired if self.paired else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Figures, ready for JSON."""
        return {
            "reading_hmean": self.lines.hmean,
            "reading_precision": self.lines.precision,
            "reading_recall": self.lines.recall,
            "words_hmean": self.words.hmean,
            "exact_lines": self.exact,
            "cer": self.cer,
            "end_to_end_cer": self.end_to_end_cer,
        }


def folded(text: str) -> str:
    """A text as it is compared: case folded, white space as single spaces."""
    return " ".join(text.casefold().split())


def edit_distance(first: str, second: str) -> int:
    """The least number of insertions, deletions and replacements of a character that make one text the other.

    A column of the table of distances at a time, as bits of an integer: H. Hyyrö, "Explaining and extending the
    bit-parallel approximate string matching algorithm of Myers" (2001), figure 8.
    """
    if not first:
        return len(second)
    places: dict[str, int] = {}
    for index, character in enumerate(first):
        places[character] = places.get(character, 0) | 1 << index
    every, last = (1 << len(first)) - 1, 1 << (len(first) - 1)
    rises, falls, distance = every, 0, len(first)
    for character in second:
        equal = places.get(character, 0)
        level = (((equal & rises) + rises) ^ rises) | equal | falls
        along_rises, along_falls = falls | ~(level | rises), rises & level
        distance += bool(along_rises & last) - bool(along_falls & last)
        along_rises, along_falls = along_rises << 1 | 1, along_falls << 1
        rises, falls = (along_falls | ~(level | along_rises)) & every, along_rises & level & every
    return distance


def match_reading(quads: Sequence[NDArray[Any]] | NDArray[Any], texts: Sequence[str], truth: Truth) -> ReadingCounts:
    """Count what was read in one image; texts that the truth does not know are don't-care.

    Args:
        quads: (N, 4, 2) in source pixels, or polygons.
        texts: What each reads.
        truth: Truth of the image, with texts.
    """
    known = [None if text is None else folded(text) for text in truth.texts or [None] * len(truth.polygons)]
    ignored = [dont_care or text is None for dont_care, text in zip(truth.ignored, known, strict=True)]
    overlaps = find_overlaps(replace(truth, ignored=tuple(ignored)), quads)
    read = list(map(folded, texts))
    pairs = [(read[found], known[wanted] or "") for wanted, found in assign(overlaps, "greedy")]
    lines = Counts(
        sum(found == wanted for found, wanted in pairs),
        int(overlaps.detection_counts.sum()),
        int(overlaps.truth_counts.sum()),
    )
    wanted = [text or "" for text, counts in zip(known, overlaps.truth_counts, strict=True) if counts]
    found = [text for text, counts in zip(read, overlaps.detection_counts, strict=True) if counts]
    characters = sum(len(text) for _, text in pairs)
    return ReadingCounts(
        lines,
        _words(found, wanted),
        len(pairs),
        sum(edit_distance(*pair) for pair in pairs),
        characters,
        sum(map(len, wanted)) - characters,
    )


def total_reading(counts: Iterable[ReadingCounts]) -> ReadingCounts:
    """Sum over a set of images."""
    return sum(counts, ReadingCounts())


def _words(found: Iterable[str], wanted: Iterable[str]) -> Counts:
    read, truth = (Counter(word for text in texts for word in text.split()) for texts in (found, wanted))
    return Counts((read & truth).total(), read.total(), truth.total())
