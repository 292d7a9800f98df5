# SPDX-License-Identifier: Apache-2.0
"""KServe v2 requests and responses over HTTP, with binary tensors. Pure."""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from ocdserve.client._wire.codec import InferRequest
from ocdserve.client._wire.regions import Region

DTYPES: Mapping[str, type[np.generic]] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP32": np.float32,
}
_HEADER_LENGTH = "inference-header-content-length"


def encode_infer(request: InferRequest) -> tuple[str, dict[str, str], list[bytes | memoryview]]:
    """Encode a request as a POST: path, headers and the pieces of the body."""
    pieces: list[bytes | memoryview] = []
    if request.region is not None:
        parameters: dict[str, Any] = {
            "shared_memory_region": request.region.name,
            "shared_memory_byte_size": request.region.nbytes,
        }
    else:
        pieces = bytes_tensor(request.array) if request.datatype == "BYTES" else [request.array.data.cast("B")]
        parameters = {"binary_data_size": sum(len(piece) for piece in pieces)}
    message: dict[str, Any] = {
        "inputs": [
            {
                "name": request.input_name,
                "shape": list(request.array.shape),
                "datatype": request.datatype,
                "parameters": parameters,
            }
        ],
        "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in request.outputs],
    }
    if request.request_id:
        message["id"] = request.request_id
    if request.parameters:
        message["parameters"] = dict(request.parameters)
    header = json.dumps(message).encode()
    headers = {
        **request.headers,
        "content-type": "application/octet-stream",
        _HEADER_LENGTH: str(len(header)),
    }
    return f"/v2/models/{quote(request.model, safe='')}/infer", headers, [header, *pieces]


def bytes_tensor(array: NDArray[Any]) -> list[bytes | memoryview]:
    """The pieces of a BYTES tensor: each element after its length as four bytes, little-endian."""
    return [piece for item in array.flat for piece in (len(item).to_bytes(4, "little"), item)]


def decode_tensors(headers: Mapping[str, str], body: bytes) -> dict[str, NDArray[Any]]:
    """Output tensors of a response.

    Args:
        headers: Headers of the response, names in lower case.
        body: The decompressed body.

    Returns:
        By name, in the dtype of their datatype (`DTYPES`) and with the announced shape (B, ...); views of `body` if
        they are binary.

    Raises:
        ValueError: Not the response of an inference server.
        LookupError: The same.
    """
    announced = headers.get(_HEADER_LENGTH)
    offset = len(body) if announced is None else int(announced)
    message = json.loads(body[:offset])
    tensors: dict[str, NDArray[Any]] = {}
    for output in message.get("outputs", ()):
        dtype = np.dtype(DTYPES[output["datatype"]])
        shape = tuple(output["shape"])
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            array: NDArray[Any] = np.array(output.get("data", ()), dtype)
        else:
            array = np.frombuffer(body, dtype, size // dtype.itemsize, offset)
            offset += size
        tensors[output["name"]] = array.reshape(shape)
    return tensors


def error_message(body: bytes) -> str:
    """The reason in the body of an error response."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, LookupError, TypeError):
        return body[:300].decode(errors="replace").strip() or "no reason given"


def region_path(region: Region, action: str) -> str:
    """Path of the POST that registers or unregisters shared memory."""
    return f"/v2/{region.kind}sharedmemory/region/{quote(region.name, safe='')}/{action}"


def region_body(region: Region) -> bytes:
    """Body of the POST that registers shared memory."""
    handle = region.memory.handle()
    if region.kind == "cuda":
        message = {"raw_handle": {"b64": handle}, "device_id": region.device, "byte_size": region.nbytes}
    else:
        message = {"key": handle, "offset": 0, "byte_size": region.nbytes}
    return json.dumps(message).encode()
