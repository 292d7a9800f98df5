# SPDX-License-Identifier: Apache-2.0
"""The result of reading: detections with their texts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ocdserve.contract import InvalidInputError
from ocdserve.results import exchange, order
from ocdserve.results.detections import Detections
from ocdserve.results.quads import shortest

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image as Picture
    from typing_extensions import Self

    from ocdserve.results.images import Image


class Word(NamedTuple):
    """One word of a line.

    Attributes:
        text: Its characters.
        score: Mean probability of its characters, 0 to 1, a float32 value.
        quad: float32 (4, 2), corners (x, y) in source pixels, clockwise from the text's own top left: the first edge
            runs along the text, also where it is upside down or a column.
    """

    text: str
    score: float
    quad: NDArray[np.float32]


class Line(NamedTuple):
    """One detection with its text, as a `Reading` is iterated; the first three fields are those of `Detection`.

    Attributes:
        quad: float32 (4, 2), corners (x, y) in source pixels, clockwise from the top left, of the text's own where it
            is upside down.
        score: Mean text probability inside the region, 0 to 1.
        polygon: float32 (M, 2) in source pixels; None unless requested.
        text: What it reads.
        text_score: Mean probability of the text's characters, 0 to 1.
        words: Its words; None unless requested.
    """

    quad: NDArray[np.float32]
    score: float
    polygon: NDArray[np.float32] | None
    text: str
    text_score: float
    words: tuple[Word, ...] | None = None


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Reading(Detections):
    """Text read in one image; iterates over its `Line`s. Every method of `Detections` keeps the texts.

    >>> quads = np.array([[[50, 2], [90, 2], [90, 12], [50, 12]], [[0, 0], [40, 0], [40, 10], [0, 10]]], np.float32)
    >>> scores = np.array([0.75, 0.5], np.float32)
    >>> reading = Reading(quads, scores, 100, 50, texts=("4.20", "Tea"), text_scores=scores)
    >>> reading
    Reading(2 in 100x50 pixels, scores 0.75 to 0.50)
    >>> reading.text
    'Tea 4.20'
    >>> reading.merged(reading.lines()).texts
    ('Tea 4.20',)

    Attributes:
        texts: One per detection; never with a line break.
        text_scores: float32 (N,), mean probability of each text's characters, 0 to 1.
        words: The words of each detection, in the order of its text; None unless requested.
    """

    texts: tuple[str, ...]
    text_scores: NDArray[np.float32]
    words: tuple[tuple[Word, ...], ...] | None = None

    def __iter__(self) -> Iterator[Line]:  # type: ignore[override]  # a Detection's fields, and more
        words = self.words or (None,) * len(self)
        read = zip(self.texts, map(float, self.text_scores), words, strict=True)
        return (Line(*found, *line) for found, line in zip(super().__iter__(), read, strict=True))

    @property
    def text(self) -> str:
        """The whole text: rows in reading order on lines of their own, detections of one row separated by a space."""
        return self.to_text()

    def to_text(self, *, columns: order.Columns = False, angle_deg: float | None = None) -> str:
        """The whole text, with the rows of a chosen reading order separated by line breaks.

        Args:
            columns: Whether to read columns one after the other, and from where; as in `reading_order`.
            angle_deg: Direction of the text, as in `reading_order`.

        Raises:
            InvalidInputError: `columns` is none of these.
        """
        rows = order.rows(self.quads, columns=columns, angle_deg=angle_deg)
        return "\n".join(filter(None, map(self._joined, rows)))

    def take(self, indices: Sequence[int] | NDArray[np.intp] | NDArray[np.bool_]) -> "Self":
        """The detections at these indices with their texts; see `Detections.take`."""
        chosen = np.arange(len(self))[np.asarray(indices, None if len(indices) else np.intp)]
        words = self.words and tuple(self.words[index] for index in chosen)
        texts = tuple(self.texts[index] for index in chosen)
        return replace(super().take(chosen), texts=texts, text_scores=self.text_scores[chosen], words=words)

    def filter(
        self,
        *,
        min_score: float = 0.0,
        min_width: float = 0.0,
        min_height: float = 0.0,
        max_width: float = float("inf"),
        max_height: float = float("inf"),
        min_text_score: float = 0.0,
    ) -> "Self":
        """The detections within the bounds, as `Detections.filter`, and of at least that text score (0 to 1).

        The server's own threshold is the request parameter `min_text_score`.
        """
        legible = self.take(self.text_scores >= min_text_score)
        return super(Reading, legible).filter(
            min_score=min_score, min_width=min_width, min_height=min_height, max_width=max_width, max_height=max_height
        )

    def moved(self, move: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> "Self":
        """The detections and their words with all their points (..., 2) moved."""
        words = self.words and tuple(tuple(word._replace(quad=move(word.quad)) for word in line) for line in self.words)
        return replace(super().moved(move), words=words)

    def joined(self, others: "Sequence[Self]") -> "Self":
        """These detections, and after them those of other parts of the same image, with their texts.

        They have words if those of every part have, whatever a part without detections has.
        """
        parts = [self, *others]
        words = [part.words for part in parts if len(part)] or [self.words]
        return replace(
            super().joined(others),
            texts=tuple(text for part in parts for text in part.texts),
            text_scores=np.concatenate([part.text_scores for part in parts]),
            words=None if any(each is None for each in words) else tuple(line for each in words for line in each or ()),
        )

    def merged(self, groups: Sequence[NDArray[np.intp]]) -> "Self":
        """One detection per group, as `Detections.merged`, with the texts of its members separated by a space.

        Its text score is the mean of theirs, weighted by their numbers of characters.

        Args:
            groups: intp (M,) arrays of indices, at least one each; see `lines` and `paragraphs`.
        """
        lengths = np.array([max(1, len(text)) for text in self.texts])
        scores = [np.average(self.text_scores[group], weights=lengths[group]) for group in groups]
        words = self.words and tuple(tuple(word for index in group for word in self.words[index]) for group in groups)
        texts = tuple(map(self._joined, groups))
        return replace(super().merged(groups), texts=texts, text_scores=np.array(scores, np.float32), words=words)

    def draw(self, image: "Image", *, texts: bool = False, font: "str | Path | None" = None) -> "Picture":
        """The image with every quad outlined, as `Detections.draw`; needs Pillow.

        Args:
            image: The image that was read.
            texts: Whether to write each text above its quad.
            font: File of the font that they are written in; None: Pillow's own, which has Latin letters only.

        Raises:
            InvalidInputError: The image or the font is not valid, or the image's size is not that of the reading.
            UnavailableError: Pillow is not installed.
        """
        from ocdserve.results import draw

        return draw(image, self, self.texts if texts else None, font)

    def to_dict(self) -> dict[str, Any]:
        """`Detections.to_dict`, where each detection has also text, text_score and words? [{text, score, quad}]."""
        content = super().to_dict()
        found = zip(content["detections"], self.texts, shortest(self.text_scores), strict=True)
        for index, (detection, text, score) in enumerate(found):
            detection |= {"text": text, "text_score": score}
            if self.words is not None:
                detection["words"] = [_word_dict(word) for word in self.words[index]]
        return content

    @classmethod
    def from_dict(cls, content: Any) -> "Reading":
        """A reading from the parsed JSON of one, as `to_dict` returns it.

        Raises:
            InvalidInputError: It does not describe a reading.
        """
        found = exchange.from_dict(content)
        try:
            items = content["detections"]
            words = tuple(tuple(map(_word, item["words"])) for item in items if "words" in item)
            if words and len(words) != len(items):
                raise ValueError(f"{len(words)} of {len(items)} detections have words; all or none must")
            return cls(
                **vars(found),
                texts=tuple(_text(item["text"]) for item in items),
                text_scores=np.array([item["text_score"] for item in items], np.float32).reshape(len(items)),
                words=words or None,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise InvalidInputError(
                f"not the JSON of a reading ({what}); each of its detections needs text and text_score"
            ) from error

    @classmethod
    def from_json(cls, text: str | bytes) -> "Reading":
        """Parse the output of `to_json` or `ocdserve read --format json`; float32 values are restored exactly.

        Raises:
            InvalidInputError: The text is not JSON, or not that of a reading.
        """
        return cls.from_dict(exchange.parsed_json(text))

    def to_rows(self, image: str | None = None) -> list[dict[str, Any]]:
        """The rows of `Detections.to_rows`, with the columns text and text_score."""
        read = zip(super().to_rows(image), self.texts, shortest(self.text_scores), strict=True)
        return [row | {"text": text, "text_score": score} for row, text, score in read]

    def to_icdar(self, texts: Sequence[str] | None = None) -> str:
        """Lines of ICDAR 2015: x1,y1,...,x4,y4,text in whole pixels; the texts are those read unless others are given.

        Raises:
            InvalidInputError: There is not one text per detection, or a text contains a line break.
        """
        return super().to_icdar(self.texts if texts is None else texts)

    def to_labelme(self, image_path: str, *, label: str = "text") -> dict[str, Any]:
        """labelme's annotation file for an image, with the texts as descriptions of the shapes."""
        content = super().to_labelme(image_path, label=label)
        for shape, text in zip(content["shapes"], self.texts, strict=True):
            shape["description"] = text
        return content

    def to_tsv(self) -> str:
        """Tesseract's TSV, a row per page, block, paragraph, line and word; see `ocdserve.results.reading.to_tsv`."""
        from ocdserve.results.reading import to_tsv

        return to_tsv(self)

    def to_markdown(self) -> str:
        """The paragraphs as Markdown; see `ocdserve.results.reading.to_markdown`."""
        from ocdserve.results.reading import to_markdown

        return to_markdown(self)

    def to_hocr(self, image: str | None = None) -> str:
        """An hOCR document of the page, with the picture's name; `ocdserve.results.reading.to_hocr` takes several."""
        from ocdserve.results.reading import to_hocr

        return to_hocr(self, image)

    def to_alto(self, image: str | None = None) -> str:
        """An ALTO 4 document of the page, with the picture's name; `ocdserve.results.reading.to_alto` takes several."""
        from ocdserve.results.reading import to_alto

        return to_alto(self, image)

    def to_searchable_pdf(self, image: "Image", *, dpi: float | None = None) -> bytes:
        """A PDF of the picture, or the PDF that was read, with the text to search; needs pikepdf.

        See `ocdserve.results.reading.to_searchable_pdf`, which takes several pages.

        Raises:
            InvalidInputError: The image or PDF cannot be read, or is another one than was read.
            UnavailableError: pikepdf, or for pictures Pillow, is not installed.
        """
        from ocdserve.results.reading import to_searchable_pdf

        return to_searchable_pdf(self, image, dpi=dpi)

    def _joined(self, indices: NDArray[np.intp]) -> str:
        return " ".join(filter(None, (self.texts[index] for index in indices)))


def _word_dict(word: Word) -> dict[str, Any]:
    return {"text": word.text, "score": shortest(np.array(word.score)), "quad": shortest(word.quad)}


def _word(item: Any) -> Word:
    quad = np.array(item["quad"], np.float32).reshape(4, 2)
    return Word(_text(item["text"]), float(np.float32(item["score"])), quad)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text is {type(value).__name__}, no string")
    return value
