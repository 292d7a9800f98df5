# SPDX-License-Identifier: Apache-2.0
"""The facade: one call from an image to its detections."""

from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ocdserve.client._codec import decode_response, encode_request
from ocdserve.client._transports import Transport, transport_for
from ocdserve.contract import ENSEMBLE, Detections, InvalidInputError, RequestParameters, UnavailableError

__all__ = ["TextDetector"]

Image: TypeAlias = bytes | bytearray | memoryview | str | Path | NDArray[np.uint8]


class TextDetector:
    """Detects text by asking a server; a context manager.

    Keeps one connection. Use one `TextDetector` a thread: the HTTP library beneath it is not thread-safe.
    """

    def __init__(
        self, url: str, *, timeout_s: float = 60.0, model: str | None = None, transport: Transport | None = None
    ) -> None:
        """Prepare a connection; the first call opens it.

        Args:
            url: grpc://HOST:PORT or http://HOST:PORT.
            timeout_s: Limit of one call, in seconds. Over HTTP it limits each wait for the network.
            model: Served model; None: `ocdnet` for encoded images, `ocdnet_raw` for pixels.
            transport: Carries the requests instead of the one that the URL names (see `MockTransport`).

        Raises:
            InvalidInputError: `url` or `timeout_s` is not valid.
        """
        self.url = url
        self._model = model
        self._transport: Transport | None = transport or transport_for(url, timeout_s)

    def detect(self, image: Image, **overrides: Any) -> Detections:
        """Detect the text in one image.

        Args:
            image: Encoded image (bytes), the path of one, or uint8 (H, W, 3) RGB pixels.
            **overrides: Any of thresh, box_thresh, unclip_ratio, max_candidates, min_size and polygons
                (`ocdserve.contract.PARAMETERS` has their types and ranges); the server's defaults hold otherwise.

        Returns:
            Quads and scores in source pixels, best first; with `polygons=True` the polygons too.

        Raises:
            InvalidInputError: The image or a parameter is not valid.
            UnavailableError: The server is absent, not ready, overloaded or too slow, or this object is closed.
            ServerError: The server failed.
        """
        transport = self._open_transport()
        parameters = RequestParameters.parse(overrides)
        request = encode_request(_loaded(image), parameters, self._model)
        return decode_response(transport.infer(request), polygons=parameters.polygons)

    def ready(self) -> bool:
        """Whether the server answers and says that the model (by default `ocdnet`) is ready."""
        try:
            return self._open_transport().ready(self._model or ENSEMBLE)
        except UnavailableError:
            return False

    def close(self) -> None:
        """Close the connection; calling it again does nothing."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def __enter__(self) -> "TextDetector":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open_transport(self) -> Transport:
        if self._transport is None:
            raise UnavailableError(f"this TextDetector({self.url!r}) is closed; make a new one")
        return self._transport


def _loaded(image: Image) -> bytes | NDArray[np.uint8]:
    """The image itself: the content of the file where a path is given."""
    if isinstance(image, str | Path):
        try:
            return Path(image).read_bytes()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise InvalidInputError(f"cannot read the image file {str(image)!r}: {reason}") from error
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    return image
