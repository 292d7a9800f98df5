# SPDX-License-Identifier: Apache-2.0
"""Clients of an ocdserve server: `TextDetector` and `TextReader`; for asyncio `AsyncTextDetector`, `AsyncTextReader`.

>>> from ocdserve.client import TextDetector, TextReader
>>> with TextDetector("grpc://127.0.0.1:8001") as detector:
...     found = detector.detect("receipt.jpg")
>>> with TextReader("grpc://127.0.0.1:8001") as reader:
...     print(reader.read("receipt.jpg").text)
"""

from ocdserve.client._detector import AsyncTextDetector, TextDetector
from ocdserve.client._errors import AccessError, DeadlineError, ServerError
from ocdserve.client._health import Capabilities, Health, ModelInfo, ServerHealth
from ocdserve.client._options import Retry, SharedMemory, Timeout, Tls
from ocdserve.client._reader import AsyncTextReader, TextReader
from ocdserve.client._sansio.hooks import ErrorEvent, Hooks, RequestEvent, ResponseEvent
from ocdserve.client._transports import AsyncMockTransport, AsyncTransport, MockTransport, Transport
from ocdserve.client._wire.codec import InferRequest
from ocdserve.contract import Downloads, InvalidInputError, OcdserveError, Overrides, ReadingOverrides, UnavailableError
from ocdserve.results.detections import Detection, Detections
from ocdserve.results.images import Image
from ocdserve.results.many import Outcome
from ocdserve.results.reading import Line, Reading, ReadOutcome, Word

__all__ = [
    "AccessError",
    "AsyncMockTransport",
    "AsyncTextDetector",
    "AsyncTextReader",
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
    "Line",
    "MockTransport",
    "ModelInfo",
    "OcdserveError",
    "Outcome",
    "Overrides",
    "ReadOutcome",
    "Reading",
    "ReadingOverrides",
    "RequestEvent",
    "ResponseEvent",
    "Retry",
    "ServerError",
    "ServerHealth",
    "SharedMemory",
    "TextDetector",
    "TextReader",
    "Timeout",
    "Tls",
    "Transport",
    "UnavailableError",
    "Word",
]
