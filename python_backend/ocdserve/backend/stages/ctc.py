# SPDX-License-Identifier: Apache-2.0
"""From class scores to text, by the CTC rule: of each step the best class, repetitions once, blanks never.

A. Graves et al., "Connectionist Temporal Classification", ICML 2006, section 3.2 (best path decoding).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.kernels.cpu import library
from ocdserve.backend.spec.recogniser_spec import RecogniserSpec
from ocdserve.contract import UnavailableError

# Of `words`: in time steps, in distances to the next space's centre, and in the line's usual distances of characters.
_LATE, _TO_SPACE, _MOST_REACH = 0.25, 0.6, 0.8
# CJK symbols to kana, Han with its extensions, compatibility ideographs, full-width forms, and the planes 2 and 3.
_WITHOUT_SPACES = ((0x3000, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0xFF01, 0xFF9F), (0x20000, 0x3FFFF))


class Steps(NamedTuple):
    """The best class of each time step.

    Attributes:
        classes: int32 (T,).
        probabilities: float32 (T,), 0 to 1.
    """

    classes: NDArray[np.int32]
    probabilities: NDArray[np.float32]


class Character(NamedTuple):
    """One character of a line.

    Attributes:
        text: The character.
        score: Its probability at its first step, 0 to 1.
        first: The first time step of its class.
        last: The last one, inclusive.
    """

    text: str
    score: float
    first: int
    last: int


class Line(NamedTuple):
    """What a line reads.

    Attributes:
        text: Its characters.
        score: Mean of the scores of those that are no space, 0 to 1; 0 without any.
        characters: The characters, from left to right.
    """

    text: str
    score: float
    characters: tuple[Character, ...]


def best_steps(scores: NDArray[np.float32], spec: RecogniserSpec, *, compiled: bool = True) -> Steps:
    """The best class of each step and its probability; see `RecogniserSpec.space_threshold`.

    Args:
        scores: float32 (T, classes), which may be memory of a runtime: it is read once, and not kept.
        spec: The recogniser's.
        compiled: Whether to use the compiled library where there is one; the result is the same.

    Raises:
        UnavailableError: The scores are of another shape.
    """
    if scores.ndim != 2 or scores.shape[1] != spec.classes:
        raise UnavailableError(
            f"the recogniser's network returned scores of {' x '.join(map(str, scores.shape))}; they must be of T x "
            f"{spec.classes}, one class per character and a blank"
        )
    loaded = library.load() if compiled else None
    if (
        loaded
        and spec.network.scores == "softmax"
        and scores.size
        and scores.dtype == np.float32
        and scores.flags.carray
    ):
        return Steps(*loaded.best_steps(scores, spec.network.blank, spec.space))
    best = scores.argmax(axis=1)
    highest = scores[np.arange(len(scores)), best]
    totals = None
    if spec.network.scores == "logits":
        totals = highest, np.exp(scores - highest[:, None]).sum(axis=1)
    if spec.space is not None:
        space, threshold = spec.space
        likelihoods = _probabilities(scores[:, space], totals)
        is_space = (best == spec.network.blank) & (likelihoods > np.float32(threshold))
        best = np.where(is_space, space, best)
        highest = np.where(is_space, scores[:, space], highest)
    return Steps(best.astype(np.int32), _probabilities(highest, totals))


def _probabilities(
    scores: NDArray[np.float32], totals: tuple[NDArray[np.float32], NDArray[np.float32]] | None
) -> NDArray[np.float32]:
    """Probabilities (T,) of scores; of logits by each step's largest and the sum of exponentials above it."""
    found = scores if totals is None else np.exp(scores - totals[0]) / totals[1]
    return np.asarray(found, np.float32)


def greedy(
    classes: NDArray[np.int32], probabilities: NDArray[np.float32], characters: Sequence[str], blank: int = 0
) -> Line:
    """Decode the best path.

    Args:
        classes: int32 (T,), best class of each step.
        probabilities: float32 (T,), its probability.
        characters: Text of each class but the blank, in the order of the classes.
        blank: Class of the blank.
    """
    changes = np.flatnonzero(np.diff(classes)) + 1
    firsts = np.concatenate([np.zeros(min(1, len(classes)), np.intp), changes])
    lasts = np.concatenate([changes - 1, np.full(min(1, len(classes)), len(classes) - 1, np.intp)])
    kept = classes[firsts] != blank
    firsts, lasts = firsts[kept], lasts[kept]
    found = classes[firsts]
    texts = [characters[index] for index in np.where(found > blank, found - 1, found).tolist()]
    values = probabilities[firsts].tolist()
    read = tuple(map(Character, texts, values, firsts.tolist(), lasts.tolist()))
    visible = [each.score for each in read if not each.text.isspace()]
    return Line("".join(texts), sum(visible) / len(visible) if visible else 0.0, read)


def words(line: Line, pitch: float, width: float, height: float) -> list[tuple[str, float, NDArray[np.float64]]]:
    """The words of a line and where they are: what spaces separate, and each character of scripts without spaces.

    CTC fixes a character's place by a peak, not by its edges. See docs/decisions/0082 for the measured edges: peaks are
    a quarter of a step late, and a word reaches beyond its last character's centre by 0.6 of the distance to the space,
    at the ends of the line by 0.6 of the line's usual distance of characters.

    Args:
        line: The line.
        pitch: Width of a time step in pixels of the line.
        width: Width of the line in pixels, without padding.
        height: Height of the line in pixels.

    Returns:
        Text, mean score of the characters, and corners float64 (4, 2) in pixels of the line, clockwise from the top
        left, of each word.
    """
    centres = np.array([((each.first + each.last + 1) / 2 - _LATE) * pitch for each in line.characters])
    gaps = np.diff(centres)
    usual = float(np.median(gaps)) if len(gaps) else width
    is_space = np.array([True, *(each.text.isspace() for each in line.characters), True])
    found = []
    for start, end in _word_ranges(line, is_space):
        before, after = (gaps[start - 1] if start else usual), (gaps[end - 1] if end <= len(gaps) else usual)
        reach = [
            min((_TO_SPACE if spaced else 0.5) * gap, _MOST_REACH * usual)
            for gap, spaced in ((before, is_space[start]), (after, is_space[end + 1]))
        ]
        left, right = np.clip([centres[start] - reach[0], centres[end - 1] + reach[1]], 0, width).tolist()
        corners = np.array([(left, 0), (right, 0), (right, height), (left, height)])
        members = line.characters[start:end]
        score = sum(each.score for each in members) / len(members)
        found.append(("".join(each.text for each in members), score, corners))
    return found


def _word_ranges(line: Line, is_space: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First character of each word, and the one after its last.

    Args:
        line: The line.
        is_space: Of its characters, and one before and after them.
    """
    alone = np.array([False, *(_is_word(each.text) for each in line.characters), False])
    edges = (np.diff(is_space) | alone[1:] | alone[:-1]).nonzero()[0].tolist()
    return [(start, end) for start, end in pairwise(edges) if not is_space[start + 1]]


def _is_word(text: str) -> bool:
    """Whether a character belongs to a script without spaces: Han, kana, and their punctuation."""
    return any(first <= ord(text[0]) <= last for first, last in _WITHOUT_SPACES)
