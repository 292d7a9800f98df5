# SPDX-License-Identifier: Apache-2.0
"""Client of an ocdserve server: `TextDetector`, and `AsyncTextDetector` for asyncio.

>>> from ocdserve.client import TextDetector
>>> with TextDetector("grpc://127.0.0.1:8001") as detector:
...     found = detector.detect("receipt.jpg")
"""

from ocdserve.client._detector import AsyncTextDetector, TextDetector
from ocdserve.client._errors import AccessError, DeadlineError, ServerError
from ocdserve.client._health import Capabilities, Health, ModelInfo, ServerHealth
from ocdserve.client._options import Retry, SharedMemory, Timeout, Tls
from ocdserve.client._sansio.hooks import ErrorEvent, Hooks, RequestEvent, ResponseEvent
from ocdserve.client._transports import AsyncMockTransport, AsyncTransport, MockTransport, Transport
from ocdserve.client._wire.codec import InferRequest
from ocdserve.contract import Downloads, InvalidInputError, OcdserveError, Overrides, UnavailableError
from ocdserve.results.detections import Detection, Detections
from ocdserve.results.images import Image
from ocdserve.results.many import Outcome

__all__ = [
    "AccessError",
    "AsyncMockTransport",
    "AsyncTextDetector",
    "AsyncTransport",
    "Capabilities",
    "DeadlineError",
    "Detection",
    "Detections",
    "Downloads",
    "ErrorEvent",
    "Health",
    "Hooks",
    "Image",
    "InferRequest",
    "InvalidInputError",
    "MockTransport",
    "ModelInfo",
    "OcdserveError",
    "Outcome",
    "Overrides",
    "RequestEvent",
    "ResponseEvent",
    "Retry",
    "ServerError",
    "ServerHealth",
    "SharedMemory",
    "TextDetector",
    "Timeout",
    "Tls",
    "Transport",
    "UnavailableError",
]
