# SPDX-License-Identifier: Apache-2.0
"""Model and tensor names, dtypes and shapes, as in each `config.pbtxt`."""

from dataclasses import dataclass, replace

CONTRACT_VERSION = 1

ENSEMBLE = "ocdnet"
ENSEMBLE_RAW = "ocdnet_raw"
FUSED = "ocdnet_fused"
PREPROCESS = "ocdnet_preprocess"
NETWORK = "ocdnet_network"
POSTPROCESS = "ocdnet_postprocess"
OCR = "ocr"
OCR_RAW = "ocr_raw"
OCR_FUSED = "ocr_fused"
RECOGNISE = "ocrnet_recognise"
# The models that clients ask for; the others are steps of the ensembles. Those that read are served with a recogniser.
DETECTING_MODELS = (ENSEMBLE, ENSEMBLE_RAW, FUSED)
READING_MODELS = (OCR, OCR_RAW, OCR_FUSED)
ASKED_MODELS = (*DETECTING_MODELS, *READING_MODELS)

# After a model's name while the server's detector is replaced: the same model of the new detector.
NEXT = "_next"

MAX_BATCH_SIZE = 8

# Parameter of the ensemble's `config.pbtxt`: a JSON object, the served detector's defaults of request parameters.
REQUEST_DEFAULTS = "request_defaults"


# Parameter of the ensembles' `config.pbtxt`: which detector is served, `Bundle.digest`.
GENERATION_PARAMETER = "generation"

# Header by which a client proves that it may use the server's shared memory; Triton's gRPC wants the prefix before it.
SHARED_MEMORY_HEADER = "x-ocdserve-shared-memory"
GRPC_HEADER_PREFIX = "triton-grpc-protocol-"


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a model.

    Attributes:
        name: Name on the wire.
        dtype: KServe v2 / Triton data type, such as "FP32" or "BYTES".
        dims: Shape without the batch dimension; -1 where it varies.
        optional: Whether a request may leave it out (inputs only).
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True)
class ModelContract:
    """Inputs and outputs of one served model."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    is_ensemble: bool = False
    max_batch_size: int = MAX_BATCH_SIZE


# Encoded image, in one of FORMATS.
IMAGE = TensorSpec("IMAGE", "BYTES", (1,))
# Decoded image, uint8 RGB, height x width x 3.
PIXELS = TensorSpec("PIXELS", "UINT8", (-1, -1, 3))

# Corners in source pixels (x, y), clockwise from the top left, so that the first edge is the upper one: a line's long
# side, a column's short one. `results.quads.order_corners` is the rule. Rows past COUNT are zero.
QUADS = TensorSpec("QUADS", "FP32", (-1, 4, 2))
SCORES = TensorSpec("SCORES", "FP32", (-1,))
COUNT = TensorSpec("COUNT", "INT32", (1,))
# Source height and width in pixels, after EXIF orientation.
SIZE = TensorSpec("SIZE", "INT32", (2,))
# All polygons of an image, one after the other, in source pixels; POINT_COUNTS separates them.
POINTS = TensorSpec("POINTS", "FP32", (-1, 2))
POINT_COUNTS = TensorSpec("POINT_COUNTS", "INT32", (-1,))

# What each detection says, UTF-8, and the mean probability of its characters. Rows past COUNT are empty and zero.
TEXTS = TensorSpec("TEXTS", "BYTES", (-1,))
TEXT_SCORES = TensorSpec("TEXT_SCORES", "FP32", (-1,))
# All words of an image, one detection's after the other's, with quads in source pixels; WORD_COUNTS separates them.
WORD_TEXTS = TensorSpec("WORD_TEXTS", "BYTES", (-1,))
WORD_SCORES = TensorSpec("WORD_SCORES", "FP32", (-1,))
WORD_QUADS = TensorSpec("WORD_QUADS", "FP32", (-1, 4, 2))
WORD_COUNTS = TensorSpec("WORD_COUNTS", "INT32", (-1,))
# Lines that are cut out already, uint8 RGB in containers as large as the largest, and the height and width of each.
CROPS = TensorSpec("CROPS", "UINT8", (-1, -1, -1, 3))
CROP_SIZES = TensorSpec("CROP_SIZES", "INT32", (-1, 2))

# Between the steps. A request of several images shares one container, as large as its largest image;
# FRAME says how much of it each image fills. An elongated image's tiles are one below the other: its content has a side
# longer than the network's.
NETWORK_IMAGE = TensorSpec("NETWORK_IMAGE", "UINT8", (-1, -1, 3))
# source height, source width, network height, network width, content height, content width.
FRAME = TensorSpec("FRAME", "INT32", (6,))
# When the client stops waiting and when the request arrived, in nanoseconds of the server's monotonic clock, the
# number of the model that was asked for, from 1 in ASKED_MODELS, and which detector has prepared the image,
# `Bundle.generation`. A 0, or what is left out, is unknown. No step begins after the first, or with another detector.
CONTEXT = TensorSpec("CONTEXT", "INT64", (-1,))
# Text probability times 255, rounded.
MAP = TensorSpec("MAP", "UINT8", (-1, -1))

DETECTION_OUTPUTS = (QUADS, SCORES, COUNT)
POLYGON_OUTPUTS = (POINTS, POINT_COUNTS)
RESULTS = (*DETECTION_OUTPUTS, SIZE, *POLYGON_OUTPUTS)
WORD_OUTPUTS = (WORD_TEXTS, WORD_SCORES, WORD_QUADS, WORD_COUNTS)
READINGS = (*RESULTS, TEXTS, TEXT_SCORES, *WORD_OUTPUTS)

MODELS: dict[str, ModelContract] = {
    model.name: model
    for model in (
        ModelContract(ENSEMBLE, (IMAGE,), RESULTS, is_ensemble=True),
        ModelContract(ENSEMBLE_RAW, (PIXELS,), RESULTS, is_ensemble=True),
        ModelContract(FUSED, (IMAGE,), RESULTS),
        ModelContract(
            PREPROCESS,
            (replace(IMAGE, optional=True), replace(PIXELS, optional=True)),
            (NETWORK_IMAGE, FRAME, SIZE, CONTEXT),
        ),
        ModelContract(NETWORK, (NETWORK_IMAGE, FRAME, replace(CONTEXT, optional=True)), (MAP,)),
        ModelContract(
            POSTPROCESS, (MAP, FRAME, replace(CONTEXT, optional=True)), (*DETECTION_OUTPUTS, *POLYGON_OUTPUTS)
        ),
        ModelContract(OCR, (IMAGE,), READINGS, is_ensemble=True),
        ModelContract(OCR_RAW, (PIXELS,), READINGS, is_ensemble=True),
        ModelContract(OCR_FUSED, (IMAGE,), READINGS),
        ModelContract(
            RECOGNISE,
            tuple(
                replace(tensor, optional=True)
                for tensor in (IMAGE, PIXELS, *DETECTION_OUTPUTS, *POLYGON_OUTPUTS, CROPS, CROP_SIZES, CONTEXT)
            ),
            READINGS,
        ),
    )
}
