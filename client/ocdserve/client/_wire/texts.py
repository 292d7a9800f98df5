# SPDX-License-Identifier: Apache-2.0
"""Reading on the wire: lines to request tensors, response tensors to `Reading`s. Pure: no files, no network."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.client._errors import ServerError
from ocdserve.client._wire.codec import InferRequest
from ocdserve.client._wire.decoding import decode_batch, tensor
from ocdserve.client._wire.tasks import Task, detection_outputs
from ocdserve.contract import (
    OCR,
    OCR_RAW,
    READING_MODELS,
    READING_PARAMETERS,
    RECOGNISE,
    ReadingParameters,
)
from ocdserve.results.reading import Reading, ReadOutcome, Word

_TEXTS = ("TEXTS", "TEXT_SCORES")
_WORDS = ("WORD_TEXTS", "WORD_SCORES", "WORD_QUADS", "WORD_COUNTS")

# Control characters, which no recogniser knows: a terminal would obey them, and a line break would split a text.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def encode_lines(lines: Sequence[NDArray[np.uint8]], parameters: ReadingParameters, **known: Any) -> InferRequest:
    """Build a request for text lines that are cut out already.

    Args:
        lines: uint8 (h, w, 3) RGB each, at least one.
        parameters: Those of reading are sent.
        **known: Further fields of the request.
    """
    sizes = np.array([line.shape[:2] for line in lines], np.int32)
    crops = np.zeros((1, len(lines), *sizes.max(axis=0), 3), np.uint8)
    for line, crop in zip(lines, crops[0], strict=True):
        crop[: line.shape[0], : line.shape[1]] = line
    given = {name: value for name, value in parameters.given().items() if READING_PARAMETERS[name].stage == "read"}
    outputs = line_outputs(parameters)
    return InferRequest(
        RECOGNISE, "CROPS", "UINT8", crops, outputs, given, more={"CROP_SIZES": sizes[np.newaxis]}, **known
    )


def line_outputs(parameters: ReadingParameters) -> tuple[str, ...]:
    """Names of the outputs to request for the texts alone."""
    return _TEXTS + _WORDS if parameters.words else _TEXTS


def _reading_outputs(parameters: ReadingParameters) -> tuple[str, ...]:
    return detection_outputs(parameters) + line_outputs(parameters)


def decode_readings(
    tensors: Mapping[str, NDArray[Any]],
    images: int,
    parameters: ReadingParameters,
    *,
    latency_ms: float | None = None,
    request_id: str | None = None,
) -> list[Reading]:
    """Decode the response to a request of several images that are read.

    Args:
        tensors: As for `decode_batch`, and TEXTS bytes (B, N) in UTF-8 and TEXT_SCORES float32 (B, N); with words
            WORD_TEXTS bytes (B, M), WORD_SCORES float32 (B, M), WORD_QUADS float32 (B, M, 4, 2) and WORD_COUNTS int32
            (B, N).
        images: Number of images in the request, B.
        parameters: Those of the request.
        latency_ms: Duration of the request, for the results.
        request_id: Id of the request, for the results.

    Raises:
        ServerError: A tensor is missing, the tensors do not fit together, or a text is no text.
    """
    known: dict[str, Any] = {"latency_ms": latency_ms, "request_id": request_id, "page": parameters.page}
    found = decode_batch(tensors, images, polygons=parameters.polygons, **known)
    rows = tensor(tensors, "QUADS", (images, None, 4, 2)).shape[1]
    return [
        Reading(**vars(one), **decode_texts(tensors, (images, rows), index, len(one), parameters.words))
        for index, one in enumerate(found)
    ]


def decode_texts(
    tensors: Mapping[str, NDArray[Any]], shape: tuple[int, int], image: int, count: int, words: bool
) -> dict[str, Any]:
    """The texts of one image, as the fields of a `Reading`.

    Args:
        tensors: As for `decode_readings`.
        shape: Of TEXTS, (B, N).
        image: Index of the image, from 0.
        count: Number of lines, at most N.
        words: Whether the request asked for words.

    Raises:
        ServerError: As for `decode_readings`.
    """
    texts = _decoded("TEXTS", tensor(tensors, "TEXTS", shape, "O")[image, :count])
    scores = _between_0_and_1(tensors, "TEXT_SCORES", shape)[image, :count]
    fields = {"texts": texts, "text_scores": np.array(scores, np.float32)}
    return fields | {"words": _words(tensors, shape, image, count) if words else None}


def _words(
    tensors: Mapping[str, NDArray[Any]], shape: tuple[int, int], image: int, count: int
) -> tuple[tuple[Word, ...], ...]:
    batch = tensor(tensors, "WORD_TEXTS", (shape[0], None), "O")
    quads = tensor(tensors, "WORD_QUADS", (*batch.shape, 4, 2))[image]
    scores = _between_0_and_1(tensors, "WORD_SCORES", batch.shape)[image].tolist()
    lengths = tensor(tensors, "WORD_COUNTS", shape, "i")[image, :count]
    total = int(lengths.sum(dtype=np.int64))
    if (lengths < 0).any() or total > len(scores):
        raise ServerError(
            f"the server's WORD_COUNTS must add up to at most the {len(scores)} rows of WORD_TEXTS; "
            f"got {lengths.tolist()}"
        )
    texts = _decoded("WORD_TEXTS", batch[image, :total])
    words = [
        Word(text, score, np.array(quad, np.float32)) for text, score, quad in zip(texts, scores, quads, strict=False)
    ]
    ends = np.cumsum(lengths, dtype=np.int64)
    return tuple(tuple(words[end - length : end]) for end, length in zip(ends, lengths, strict=True))


def _between_0_and_1(tensors: Mapping[str, NDArray[Any]], name: str, shape: Sequence[int]) -> NDArray[Any]:
    values = tensor(tensors, name, tuple(shape))
    if values.size and not 0 <= float(values.min()) <= float(values.max()) <= 1:
        raise ServerError(f"the server's {name} must be from 0 to 1; got {values.min()} to {values.max()}")
    return values


def _decoded(name: str, elements: NDArray[Any]) -> tuple[str, ...]:
    """The texts of a BYTES tensor's row."""
    try:
        texts = tuple(element.decode() for element in elements)
    except UnicodeDecodeError as error:
        raise ServerError(f"the server's {name} must be UTF-8 ({error})") from error
    for text in texts:
        if _CONTROL.search(text):
            raise ServerError(f"the server's {name} must hold no control characters; got {text[:80]!r}")
    return texts


READ = Task(
    encoded=OCR,
    pixels=OCR_RAW,
    models=READING_MODELS,
    parameters=ReadingParameters,
    outputs=_reading_outputs,
    decode=decode_readings,
    outcome=ReadOutcome,
    returns="texts",
    remedy="start it with `ocdserve serve --recogniser default`, or publish its repository with a recogniser",
)
