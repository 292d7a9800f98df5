# SPDX-License-Identifier: Apache-2.0
"""Clients of an ocdserve server: `TextDetector` and `TextReader`; for asyncio `AsyncTextDetector`, `AsyncTextReader`.

>>> from ocdserve.client import TextDetector, TextReader
>>> with TextDetector("grpc://127.0.0.1:8001") as detector:
...     found = detector.detect("receipt.jpg")
>>> with TextReader("grpc://127.0.0.1:8001") as reader:
...     print(reader.read("receipt.jpg").text)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ocdserve.client._detector import AsyncTextDetector, TextDetector
from ocdserve.client._errors import AccessError, DeadlineError, ServerError
from ocdserve.client._health import Capabilities, Health, ModelInfo, ServerHealth
from ocdserve.client._options import Retry, SharedMemory, Timeout, Tls
from ocdserve.client._sansio.hooks import ErrorEvent, Hooks, RequestEvent, ResponseEvent
from ocdserve.client._transports import AsyncMockTransport, AsyncTransport, MockTransport, Transport
from ocdserve.client._wire.codec import InferRequest
from ocdserve.contract import Downloads, InvalidInputError, OcdserveError, Overrides, ReadingOverrides, UnavailableError
from ocdserve.results.detections import Detection, Detections
from ocdserve.results.images import Image
from ocdserve.results.many import Outcome

if TYPE_CHECKING:
    from ocdserve.client._reader import AsyncTextReader, TextReader
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

if not TYPE_CHECKING:
    _MODULES = {
        "AsyncTextReader": "ocdserve.client._reader",
        "Line": "ocdserve.results.reading",
        "ReadOutcome": "ocdserve.results.reading",
        "Reading": "ocdserve.results.reading",
        "TextReader": "ocdserve.client._reader",
        "Word": "ocdserve.results.reading",
    }

    def __getattr__(name: str) -> Any:
        """Import what reads when it is used: who detects need not load it."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *_MODULES})
