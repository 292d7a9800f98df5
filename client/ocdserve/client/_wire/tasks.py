# SPDX-License-Identifier: Apache-2.0
"""What distinguishes the kinds of clients: the models that they ask, and how their answers are read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

from ocdserve.client._wire.decoding import decode_batch
from ocdserve.client._wire.texts import decode_readings
from ocdserve.contract import (
    DETECTING_MODELS,
    ENSEMBLE,
    ENSEMBLE_RAW,
    OCR,
    OCR_RAW,
    READING_MODELS,
    ReadingParameters,
    RequestParameters,
)
from ocdserve.results.detections import Detections
from ocdserve.results.many import Outcome
from ocdserve.results.reading import ReadOutcome

Found = TypeVar("Found", bound=Detections)

# Requested by name: without names Triton returns the polygon outputs too, an error without `polygons`.
_RESULTS = ("QUADS", "SCORES", "COUNT", "SIZE")
_POLYGONS = ("POINTS", "POINT_COUNTS")
_TEXTS = ("TEXTS", "TEXT_SCORES")
_WORDS = ("WORD_TEXTS", "WORD_SCORES", "WORD_QUADS", "WORD_COUNTS")


@dataclass(frozen=True)
class Task(Generic[Found]):
    """One kind of question about images.

    Attributes:
        encoded: Model that is asked about encoded images.
        pixels: Model that is asked about raw pixels.
        models: All models that answer the question.
        parameters: Request parameters that these models know.
        outputs: Names of the outputs to request.
        decode: Output tensors by name, number of images and parameters to one result per image; keywords are
            `latency_ms` and `request_id`. Raises ServerError.
        outcome: Class of the outcomes of many images.
        returns: What these models return, for messages.
        remedy: For a server that lacks them; "": every server has them.
    """

    encoded: str
    pixels: str
    models: tuple[str, ...]
    parameters: type[RequestParameters]
    outputs: Callable[[Any], tuple[str, ...]]
    decode: Callable[..., list[Found]]
    outcome: type[Outcome[Any]]
    returns: str
    remedy: str = ""


def _detection_outputs(parameters: RequestParameters) -> tuple[str, ...]:
    return _RESULTS + _POLYGONS if parameters.polygons else _RESULTS


def line_outputs(parameters: ReadingParameters) -> tuple[str, ...]:
    """Names of the outputs to request for the texts alone."""
    return _TEXTS + _WORDS if parameters.words else _TEXTS


def _reading_outputs(parameters: ReadingParameters) -> tuple[str, ...]:
    return _detection_outputs(parameters) + line_outputs(parameters)


def _detections(
    tensors: Mapping[str, NDArray[Any]], images: int, parameters: RequestParameters, **known: Any
) -> list[Detections]:
    return decode_batch(tensors, images, polygons=parameters.polygons, page=parameters.page, **known)


DETECT = Task(
    encoded=ENSEMBLE,
    pixels=ENSEMBLE_RAW,
    models=DETECTING_MODELS,
    parameters=RequestParameters,
    outputs=_detection_outputs,
    decode=_detections,
    outcome=Outcome,
    returns="detections",
)
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
