# SPDX-License-Identifier: Apache-2.0
"""HTTP with keep-alive for asyncio, by aiohttp, a dependency of tritonclient."""

from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote

import aiohttp
from numpy.typing import NDArray

from ocdserve.client._endpoint import Endpoint
from ocdserve.client._errors import mapped_errors
from ocdserve.client._sansio.settings import Settings
from ocdserve.client._transports.http import (
    REFUSED,
    Answer,
    Body,
    compressed,
    content,
    fixed_headers,
    ssl_context_of,
    too_large,
)
from ocdserve.client._transports.per_loop import PerLoop
from ocdserve.client._wire.codec import InferRequest
from ocdserve.client._wire.http import decode_tensors, encode_infer, json_object, region_body, region_path
from ocdserve.client._wire.regions import Region
from ocdserve.contract import UnavailableError


class AsyncHttpTransport:
    """One session with one server per event loop."""

    def __init__(self, endpoint: Endpoint, settings: Settings) -> None:
        """Connect on the first request."""
        self._url = endpoint.url
        self._settings = settings
        self._headers = fixed_headers(settings)
        self._region_headers = settings.region_headers()
        self._ssl: Any = ssl_context_of(settings.tls) if endpoint.is_encrypted else True
        self._session = PerLoop(self._connect, aiohttp.ClientSession.close)
        self._closed = False

    async def infer(self, request: InferRequest) -> Mapping[str, NDArray[Any]]:
        with mapped_errors(self._url, request.timeout_s):
            path, headers, pieces = encode_infer(request)
            headers, body = compressed(headers, pieces, self._settings.compression)
            answer = await self._request("POST", path, {**self._headers, **headers}, body, request.timeout_s)
            return decode_tensors(
                answer[1], content(self._url, answer, request.timeout_s, self._settings.max_response_bytes)
            )

    async def ready(self, model: str, timeout_s: float) -> bool:
        with mapped_errors(self._url, timeout_s):
            headers = {**self._headers, **self._settings.headers}
            path = f"/v2/models/{quote(model, safe='')}/ready"
            answer = await self._request("GET", path, headers, (), timeout_s)
            if answer[0] in REFUSED:
                content(self._url, answer, timeout_s, self._settings.max_response_bytes)
            return answer[0] == 200

    async def describe(self, model: str | None, timeout_s: float) -> Mapping[str, Any]:
        path = "/v2" if model is None else f"/v2/models/{quote(model, safe='')}"
        with mapped_errors(self._url, timeout_s):
            return json_object(await self._control("GET", path, (), timeout_s))

    async def register(self, region: Region, timeout_s: float) -> None:
        await self._control(
            "POST", region_path(region, "register"), (region_body(region),), timeout_s, self._region_headers
        )

    async def unregister(self, region: Region, timeout_s: float) -> None:
        await self._control("POST", region_path(region, "unregister"), (), timeout_s, self._region_headers)

    async def close(self) -> None:
        self._closed = True
        await self._session.close()

    async def _control(
        self, method: str, path: str, body: Body, timeout_s: float, headers: Mapping[str, str] | None = None
    ) -> bytes:
        with mapped_errors(self._url, timeout_s):
            headers = {**self._headers, **(self._settings.headers if headers is None else headers)}
            answer = await self._request(method, path, headers, body, timeout_s)
            return content(self._url, answer, timeout_s, self._settings.max_response_bytes)

    async def _request(
        self, method: str, path: str, headers: Mapping[str, str], body: Body, timeout_s: float
    ) -> Answer:
        if self._closed:
            raise UnavailableError(f"{self._url}: the connection is closed")
        session = await self._session.get()
        connect_s = min(self._settings.timeout.connect, timeout_s)
        try:
            # In pieces with a known length: aiohttp warns about large bodies that are a single bytes object.
            async with session.request(
                method,
                self._url + path,
                data=_pieces(body) if body else None,
                headers={**headers, "content-length": str(sum(len(piece) for piece in body))},
                timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=connect_s),
                allow_redirects=False,
            ) as response:
                found = {name.lower(): value for name, value in response.headers.items()}
                pieces, left = [], self._settings.max_response_bytes
                async for piece in response.content.iter_any():
                    pieces.append(piece)
                    left -= len(piece)
                    if left < 0:
                        raise too_large(self._settings.max_response_bytes)
                return response.status, found, b"".join(pieces)
        except aiohttp.ServerTimeoutError as error:
            if connect_s < timeout_s:
                raise ConnectionError(f"no connection within {connect_s:g} s") from error
            raise
        except (aiohttp.ClientError, OSError) as error:
            if self._closed:
                raise UnavailableError(f"{self._url}: the client was closed during the call") from error
            raise

    def _connect(self) -> aiohttp.ClientSession:
        """A session in the running loop, with one connection per call in flight."""
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._ssl, limit=0),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=("Content-Type",),
        )


async def _pieces(body: Body) -> AsyncIterator[bytes | memoryview]:
    for piece in body:
        yield piece
