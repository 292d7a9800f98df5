# SPDX-License-Identifier: Apache-2.0
"""KServe v2 requests and responses over gRPC. Pure; imports grpc, so imported late."""

import base64
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from ocdserve.client._wire.codec import InferRequest
from ocdserve.client._wire.http import DTYPES, TIMEOUT, bytes_tensor, checked_shape, elements_of, timeout_us
from ocdserve.client._wire.regions import Region


def encode_infer(request: InferRequest) -> Any:
    """Encode a request as `ModelInferRequest`."""
    message = service_pb2.ModelInferRequest(model_name=request.model, id=request.request_id)
    tensor = message.inputs.add(name=request.input_name, datatype=request.datatype, shape=request.array.shape)
    if request.region is not None:
        tensor.parameters["shared_memory_region"].string_param = request.region.name
        tensor.parameters["shared_memory_byte_size"].int64_param = request.region.nbytes
    elif request.datatype == "BYTES":
        message.raw_input_contents.append(b"".join(bytes_tensor(request.array)))
    else:
        message.raw_input_contents.append(request.array.tobytes())
    for name, array in request.more.items():
        message.inputs.add(name=name, datatype="INT32", shape=array.shape)
        message.raw_input_contents.append(array.tobytes())
    for name in request.outputs:
        message.outputs.add(name=name)
    for name, value in request.parameters.items():
        parameter = message.parameters[name]
        if isinstance(value, bool):
            parameter.bool_param = value
        elif isinstance(value, int):
            parameter.int64_param = value
        else:
            parameter.double_param = value
    message.parameters[TIMEOUT].int64_param = timeout_us(request)
    return message


def decode_tensors(message: Any) -> dict[str, NDArray[Any]]:
    """Output tensors of a `ModelInferResponse`.

    Returns:
        By name, in the dtype of their datatype (`DTYPES`; BYTES: objects, which are bytes) and with the announced
        shape (B, ...); numbers are views of the message.

    Raises:
        ValueError: The response is inconsistent.
        LookupError: Unknown datatype.
    """
    tensors = {}
    for output, raw in zip(message.outputs, message.raw_output_contents, strict=True):
        array = elements_of(raw) if output.datatype == "BYTES" else np.frombuffer(raw, DTYPES[output.datatype])
        tensors[output.name] = array.reshape(checked_shape(output.shape))
    return tensors


def encode_describe(model: str | None) -> tuple[str, Any]:
    """Name of the call and message that ask for the metadata of a model, or of the server (None)."""
    if model is None:
        return "ServerMetadata", service_pb2.ServerMetadataRequest()
    return "ModelMetadata", service_pb2.ModelMetadataRequest(name=model)


def decode_metadata(message: Any) -> dict[str, Any]:
    """Metadata of a server or of a model, in HTTP's form."""
    if isinstance(message, service_pb2.ServerMetadataResponse):
        return {"name": message.name, "version": message.version, "extensions": list(message.extensions)}

    def tensors(found: Iterable[Any]) -> list[dict[str, Any]]:
        return [{"name": one.name, "datatype": one.datatype, "shape": list(one.shape)} for one in found]

    return {
        "name": message.name,
        "versions": list(message.versions),
        "platform": message.platform,
        "inputs": tensors(message.inputs),
        "outputs": tensors(message.outputs),
    }


def encode_register(region: Region) -> tuple[str, Any]:
    """Name of the call and message that register shared memory."""
    if region.kind == "cuda":
        return "CudaSharedMemoryRegister", service_pb2.CudaSharedMemoryRegisterRequest(
            name=region.name,
            raw_handle=base64.b64decode(region.memory.handle()),
            device_id=region.device,
            byte_size=region.nbytes,
        )
    return "SystemSharedMemoryRegister", service_pb2.SystemSharedMemoryRegisterRequest(
        name=region.name, key=region.memory.handle(), offset=0, byte_size=region.nbytes
    )


def encode_unregister(region: Region) -> tuple[str, Any]:
    """Name of the call and message that unregister shared memory."""
    if region.kind == "cuda":
        return "CudaSharedMemoryUnregister", service_pb2.CudaSharedMemoryUnregisterRequest(name=region.name)
    return "SystemSharedMemoryUnregister", service_pb2.SystemSharedMemoryUnregisterRequest(name=region.name)
