# SPDX-License-Identifier: Apache-2.0
"""KServe v2 requests and responses over HTTP, with binary tensors. Pure."""

import json
from collections.abc import Iterable, Mapping
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
# The parameter that says how long the client waits; the server begins no step after that.
TIMEOUT = "timeout"
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
    inputs = [_input(request.input_name, request.datatype, request.array, parameters)]
    for name, array in request.more.items():
        inputs.append(_input(name, "INT32", array, {"binary_data_size": array.nbytes}))
        pieces.append(array.data.cast("B"))
    message: dict[str, Any] = {
        "inputs": inputs,
        "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in request.outputs],
    }
    if request.request_id:
        message["id"] = request.request_id
    message["parameters"] = {**request.parameters, TIMEOUT: timeout_us(request)}
    header = json.dumps(message).encode()
    headers = {
        **request.headers,
        "content-type": "application/octet-stream",
        _HEADER_LENGTH: str(len(header)),
    }
    return f"/v2/models/{quote(request.model, safe='')}/infer", headers, [header, *pieces]


def _input(name: str, datatype: str, array: NDArray[Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "parameters": parameters}


def timeout_us(request: InferRequest) -> int:
    """Time limit of a request in microseconds; never 0, which is no limit."""
    return max(1, int(request.timeout_s * 1e6))


def bytes_tensor(array: NDArray[Any]) -> list[bytes | memoryview]:
    """The pieces of a BYTES tensor: each element after its length as four bytes, little-endian."""
    return [piece for item in array.flat for piece in (len(item).to_bytes(4, "little"), item)]


def elements_of(data: bytes | memoryview) -> NDArray[np.object_]:
    """The elements of a BYTES tensor, object (N,) of bytes: what `bytes_tensor` wrote.

    Raises:
        ValueError: An element is cut off.
    """
    elements, place = [], 0
    while place < len(data):
        begin = place + 4
        place = begin + int.from_bytes(data[place:begin], "little")
        elements.append(bytes(data[begin:place]))
    if place != len(data):
        raise ValueError(f"its {len(data)} bytes of texts end inside an element")
    return _objects(elements)


def _objects(elements: list[bytes]) -> NDArray[np.object_]:
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array


def decode_tensors(headers: Mapping[str, str], body: bytes) -> dict[str, NDArray[Any]]:
    """Output tensors of a response.

    Args:
        headers: Headers of the response, names in lower case.
        body: The decompressed body.

    Returns:
        By name, in the dtype of their datatype (`DTYPES`; BYTES: objects, which are bytes) and with the announced
        shape (B, ...); numbers are views of `body` if they are binary.

    Raises:
        ValueError: Not the response of an inference server.
        LookupError: The same.
    """
    announced = headers.get(_HEADER_LENGTH)
    offset = len(body) if announced is None else int(announced)
    message = json_object(body[:offset])
    tensors: dict[str, NDArray[Any]] = {}
    array: NDArray[Any]
    try:
        for output in message.get("outputs", ()):
            is_text = output["datatype"] == "BYTES"
            dtype = np.dtype(np.object_ if is_text else DTYPES[output["datatype"]])
            size = output.get("parameters", {}).get("binary_data_size")
            if size is None:
                array = _listed(output.get("data", ()), dtype)
            elif is_text:
                array = elements_of(memoryview(body)[offset : offset + size])
                offset += size
            else:
                array = np.frombuffer(body, dtype, size // dtype.itemsize, offset)
                offset += size
            tensors[output["name"]] = array.reshape(checked_shape(output["shape"]))
    except (AttributeError, TypeError, OverflowError) as error:
        raise ValueError(f"its outputs are malformed ({error})") from error
    return tensors


def _listed(values: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind == "O":
        return _objects([text.encode() for text in values])
    array = np.array(values)
    if (
        dtype.kind in "iu"
        and array.size
        and not np.iinfo(dtype).min <= array.min() <= array.max() <= np.iinfo(dtype).max
    ):
        raise ValueError(f"values from {array.min()} to {array.max()} are no {dtype}")
    return array.astype(dtype)


def checked_shape(sides: Iterable[int]) -> tuple[int, ...]:
    """The shape of a tensor; raises ValueError if a side is negative, which to NumPy means "whatever fits"."""
    shape = tuple(sides)
    if any(side < 0 for side in shape):
        raise ValueError(f"a tensor's shape is {list(shape)}")
    return shape


def json_object(text: bytes) -> dict[str, Any]:
    """Parse an object; raises ValueError for anything else."""
    try:
        message = json.loads(text)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error
    if not isinstance(message, dict):
        raise ValueError(f"its JSON is no object but {type(message).__name__}")
    return message


def error_message(body: bytes) -> str:
    """The reason in the body of an error response."""
    try:
        return str(json_object(body)["error"])
    except (ValueError, LookupError):
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
