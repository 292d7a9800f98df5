# SPDX-License-Identifier: Apache-2.0
"""What distinguishes the kinds of clients: the models that they ask, and how their answers are read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

from ocdserve.client._wire.decoding import decode_batch
from ocdserve.contract import DETECTING_MODELS, ENSEMBLE, ENSEMBLE_RAW, RequestParameters
from ocdserve.results.detections import Detections
from ocdserve.results.many import Outcome

Found = TypeVar("Found", bound=Detections)

# Requested by name: without names Triton returns the polygon outputs too, an error without `polygons`.
_RESULTS = ("QUADS", "SCORES", "COUNT", "SIZE")
_POLYGONS = ("POINTS", "POINT_COUNTS")


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


def detection_outputs(parameters: RequestParameters) -> tuple[str, ...]:
    """Names of the outputs to request for detections."""
    return _RESULTS + _POLYGONS if parameters.polygons else _RESULTS


def _detections(
    tensors: Mapping[str, NDArray[Any]], images: int, parameters: RequestParameters, **known: Any
) -> list[Detections]:
    return decode_batch(tensors, images, polygons=parameters.polygons, page=parameters.page, **known)


DETECT = Task(
    encoded=ENSEMBLE,
    pixels=ENSEMBLE_RAW,
    models=DETECTING_MODELS,
    parameters=RequestParameters,
    outputs=detection_outputs,
    decode=_detections,
    outcome=Outcome,
    returns="detections",
)
