# SPDX-License-Identifier: Apache-2.0
"""Client of an ocdserve server.

>>> from ocdserve.client import TextDetector
>>> with TextDetector("grpc://127.0.0.1:8001") as detector:
...     found = detector.detect("receipt.jpg")
"""

from ocdserve.client._client import TextDetector
from ocdserve.client._codec import InferRequest
from ocdserve.client._errors import ServerError
from ocdserve.client._transports import MockTransport, Transport
from ocdserve.contract import Detections, InvalidInputError, OcdserveError, UnavailableError

__all__ = [
    "Detections",
    "InferRequest",
    "InvalidInputError",
    "MockTransport",
    "OcdserveError",
    "ServerError",
    "TextDetector",
    "Transport",
    "UnavailableError",
]
