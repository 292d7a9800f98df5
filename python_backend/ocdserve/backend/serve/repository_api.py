# SPDX-License-Identifier: Apache-2.0
"""Client of Triton's health, model control and inference over HTTP."""

import http.client
import json
import urllib.parse
from collections.abc import Mapping

from ocdserve.contract import UnavailableError

# Header that carries the launcher's secret; Triton refuses model control without it.
SECRET_HEADER = "x-ocdserve-secret"
_HEALTH_TIMEOUT_S = 1.0
_UNLOAD_TIMEOUT_S = 5.0
_NONE: Mapping[str, str] = {}


class RepositoryApi:
    """Calls to one server. Thread-safe: every call opens its own connection."""

    def __init__(self, host: str, port: int, secret: str, load_timeout_s: float) -> None:
        self._host = host
        self._port = port
        self._secret = secret
        self._load_timeout_s = load_timeout_s

    def ready(self, model: str | None = None) -> bool:
        """Whether the server, or one model, reports that it is ready."""
        path = "/v2/health/ready" if model is None else f"/v2/models/{_quoted(model)}/ready"
        try:
            status, _ = self._call("GET", path, _HEALTH_TIMEOUT_S)
        except (OSError, http.client.HTTPException):
            return False
        return status == 200

    def live(self, timeout_s: float) -> bool:
        """Whether the server answers at all."""
        try:
            self._call("GET", "/v2/health/live", timeout_s)
        except (OSError, http.client.HTTPException):
            return False
        return True

    def unload(self, model: str) -> None:
        """Unload a model; returns at once, requests in flight are still answered."""
        self._control(model, "unload", _UNLOAD_TIMEOUT_S)

    def load(self, model: str) -> None:
        """Load a model; returns when it and the ensembles that need it are ready."""
        self._control(model, "load", self._load_timeout_s)

    def infer(self, model: str, header: bytes, data: bytes, timeout_s: float) -> tuple[int, str]:
        """Send an inference of a JSON header and binary tensors; returns HTTP status and body.

        Raises:
            OSError: No connection, or no answer in time.
            HTTPException: The answer is not HTTP.
        """
        length = {"Inference-Header-Content-Length": str(len(header))}
        return self._call("POST", f"/v2/models/{_quoted(model)}/infer", timeout_s, header + data, length)

    def _control(self, model: str, action: str, timeout_s: float) -> None:
        try:
            status, answer = self._call("POST", f"/v2/repository/models/{_quoted(model)}/{action}", timeout_s)
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError(f"{action} of model {model}: no answer from the server ({error!r})") from error
        if status != 200:
            raise UnavailableError(f"{action} of model {model}: {_reason(answer) or f'HTTP status {status}'}")

    def _call(
        self, method: str, path: str, timeout_s: float, body: bytes | None = None, headers: Mapping[str, str] = _NONE
    ) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        try:
            connection.request(method, path, body, {SECRET_HEADER: self._secret, **headers})
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        finally:
            connection.close()


def _reason(answer: str) -> str:
    """Triton's error message, without the traceback of a model."""
    try:
        message = str(json.loads(answer)["error"])
    except (ValueError, LookupError, TypeError):
        message = answer
    return message.partition("\n\nAt:\n")[0].strip()


def _quoted(model: str) -> str:
    return urllib.parse.quote(model, safe="")
