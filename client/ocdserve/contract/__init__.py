# SPDX-License-Identifier: Apache-2.0
"""The serving contract, version 1: what a client and a server of ocdserve agree on.

Names, dtypes and shapes of every model, the request parameters and the errors that both sides raise. Imports
the standard library only, so that a client can be installed without any server package.
"""

from ocdserve.contract._checks import check_count, check_seconds, is_number
from ocdserve.contract._errors import (
    InvalidInputError,
    OcdserveError,
    UnavailableError,
    UsageError,
    did_you_mean,
    exceeded,
    not_one_of,
    shown,
)
from ocdserve.contract._images import (
    FORMATS,
    IMAGE_SUFFIXES,
    MAX_PAGES,
    MAX_PIXELS,
    PDF_SUFFIX,
    Downloads,
    ImageFormat,
    is_image,
    is_url,
)
from ocdserve.contract._install import install_command
from ocdserve.contract._limits import MOST_PIXELS, Limits
from ocdserve.contract._models import (
    CONTEXT,
    CONTRACT_VERSION,
    DETECTING_MODELS,
    ENSEMBLE,
    ENSEMBLE_RAW,
    FRAME,
    FUSED,
    GRPC_HEADER_PREFIX,
    MAP,
    MAX_BATCH_SIZE,
    MODELS,
    NETWORK,
    NETWORK_IMAGE,
    POSTPROCESS,
    PREPROCESS,
    REQUEST_DEFAULTS,
    SHARED_MEMORY_HEADER,
    ModelContract,
    TensorSpec,
)
from ocdserve.contract._parameters import (
    PARAMETERS,
    POSTPROCESS_PARAMETERS,
    Overrides,
    ParameterSpec,
    RequestParameters,
)

__all__ = [
    "CONTEXT",
    "CONTRACT_VERSION",
    "DETECTING_MODELS",
    "ENSEMBLE",
    "ENSEMBLE_RAW",
    "FORMATS",
    "FRAME",
    "FUSED",
    "GRPC_HEADER_PREFIX",
    "IMAGE_SUFFIXES",
    "MAP",
    "MAX_BATCH_SIZE",
    "MAX_PAGES",
    "MAX_PIXELS",
    "MODELS",
    "MOST_PIXELS",
    "NETWORK",
    "NETWORK_IMAGE",
    "PARAMETERS",
    "PDF_SUFFIX",
    "POSTPROCESS",
    "POSTPROCESS_PARAMETERS",
    "PREPROCESS",
    "REQUEST_DEFAULTS",
    "SHARED_MEMORY_HEADER",
    "Downloads",
    "ImageFormat",
    "InvalidInputError",
    "Limits",
    "ModelContract",
    "OcdserveError",
    "Overrides",
    "ParameterSpec",
    "RequestParameters",
    "TensorSpec",
    "UnavailableError",
    "UsageError",
    "check_count",
    "check_seconds",
    "did_you_mean",
    "exceeded",
    "install_command",
    "is_image",
    "is_number",
    "is_url",
    "not_one_of",
    "shown",
]
