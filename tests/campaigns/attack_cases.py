# SPDX-License-Identifier: Apache-2.0
"""Attacks: what one client can send to harm the others, each generated here and sent in rounds."""

import gzip
import io
import itertools
import json
import socket
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import grpc
from PIL import Image
from tritonclient.grpc import service_pb2

from tests.campaigns.clients import Target, grpc_request, http_request

_LENGTH = "Inference-Header-Content-Length"
_MODELS = ("ocdnet", "ocdnet_fused")
_WAIT_S = 120.0

# What was sent, and how it ended: the HTTP status, the name of the gRPC status, or `closed`.
Outcome = tuple[str, str]


@dataclass(frozen=True)
class Victim:
    """A server to attack.

    Attributes:
        target: Its addresses.
        picture: An image file that it accepts.
        segment: Name of a shared memory segment of one of its processes.
        large: Whether to send as much as the attack needs, or a tenth.
    """

    target: Target
    picture: bytes
    segment: str
    large: bool = True

    def post(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> str:
        """Send a POST on a new connection; returns how it ended."""
        connection = self.target.connection(_WAIT_S)
        try:
            # What is refused by its headers may be answered before all of it was sent.
            with suppress(ConnectionError):
                connection.request("POST", path, body, {**(headers or {}), **self.target.headers})
            response = connection.getresponse()
            response.read()
            return str(response.status)
        except TimeoutError:
            return "timed out"
        except Exception:  # the server closed the connection, in the middle of an answer or before
            return "closed"
        finally:
            connection.close()

    def wire(self, *pieces: bytes) -> str:
        """Send bytes as they are; returns the status of the first answer."""
        host, _, port = self.target.http.rpartition(":")
        try:
            with socket.create_connection((host, int(port)), _WAIT_S) as connection:
                with suppress(ConnectionError):
                    for piece in pieces:
                        connection.sendall(piece)
                answer = connection.recv(1 << 16)
            return answer.split(b" ", 2)[1].decode() if answer.startswith(b"HTTP/") else "closed"
        except TimeoutError:
            return "timed out"
        except OSError:
            return "closed"

    def call(self, method: str, message: Any) -> str:
        """Call an RPC with a message or its bytes; returns the name of the status."""
        data = message if isinstance(message, bytes) else message.SerializeToString()
        with self.target.channel() as channel:
            try:
                channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(data, timeout=_WAIT_S)
            except grpc.RpcError as error:
                return str(error.code().name)
        return "OK"

    def infer(self, image: bytes, model: str = "ocdnet", prefix: int | None = None) -> Iterator[str]:
        """Send an image over both protocols; yields how each ended."""
        path, headers, body = http_request(model, image, prefix)
        yield self.post(path, body, headers)
        yield self.call("ModelInfer", grpc_request(model, image, prefix))


@dataclass(frozen=True)
class Attack:
    """An attack.

    Attributes:
        name: Of the attack.
        meaning: What it would do.
        round: Sends everything once and yields how it ended.
        triton: Whether it is tried on Triton's own ports; all are behind the front door.
        clients: How many attack at a time.
        harmless: What may be answered, because it harms nobody.
    """

    name: str
    meaning: str
    round: Callable[[Victim], Iterator[Outcome]]
    triton: bool = True
    clients: int = 2
    harmless: frozenset[str] = field(default_factory=frozenset)


def _shared_memory(victim: Victim, size: int) -> Iterator[Outcome]:
    message = json.dumps({"key": f"/{victim.segment}", "offset": 0, "byte_size": size}).encode()
    for action in ("register", "unregister"):
        yield action, victim.post(f"/v2/systemsharedmemory/region/w/{action}", message)
    register = service_pb2.SystemSharedMemoryRegisterRequest(name="w", key=f"/{victim.segment}", byte_size=size)
    yield "register", victim.call("SystemSharedMemoryRegister", register)
    yield "unregister", victim.call("SystemSharedMemoryUnregister", b"")


def _foreign_memory(victim: Victim) -> Iterator[Outcome]:
    yield from _shared_memory(victim, 1 << 20)
    yield "status", victim.call("SystemSharedMemoryStatus", b"")
    path, headers, body = http_request("ocdnet", victim.picture)
    length = int(headers[_LENGTH])
    message = json.loads(body[:length])
    region = {"shared_memory_region": "w", "shared_memory_offset": 0, "shared_memory_byte_size": 1 << 16}
    message["outputs"] = [{"name": "QUADS", "parameters": region}]
    head = json.dumps(message).encode()
    yield "output to a region", victim.post(path, head + body[length:], {_LENGTH: str(len(head))})


def _chunks(victim: Victim) -> Iterator[Outcome]:
    count = 700_000 if victim.large else 70_000
    for path in (f"/v2/models/{_MODELS[0]}/infer", "/v2/systemsharedmemory/region/x/register"):
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{_LENGTH}: 100\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        yield "one-byte chunks", victim.wire(head, b"1\r\nx\r\n" * count + b"0\r\n\r\n")


def _lying_length(victim: Victim) -> Iterator[Outcome]:
    for model, prefix in itertools.product(_MODELS, (2**31 - 1, len(victim.picture) + 1)):
        for end in victim.infer(victim.picture, model, prefix):
            yield "length of an image", end


def png(width: int, height: int, depth: int, colours: int, bytes_per_row: int) -> bytes:
    """A PNG file of zeros; `colours` is PNG's type of colour."""
    packer = zlib.compressobj(9)
    rows = 1 << 12
    piece = bytes(rows * (bytes_per_row + 1))
    data = b"".join(
        packer.compress(piece[: (bytes_per_row + 1) * min(rows, height - y)]) for y in range(0, height, rows)
    )
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)),
        (b"IDAT", data + packer.flush()),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG file whose last scan is repeated."""
    stream = io.BytesIO()
    Image.new("L", (side, side), 200).save(stream, "JPEG", progressive=True, quality=20)
    data = stream.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + b"\xff\xd9"


def _saved(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


@cache
def heavy_images(large: bool) -> dict[str, bytes]:
    """Small files that take long to decode, by what they are."""
    factor = 1 if large else 10
    small = _saved(Image.new("RGB", (64, 64)), "JPEG")
    exif = b"\xff\xe1\x00\x10Exif\0\0II*\0\x08\0\0\0"
    return {
        "JPEG, 8000 x 8000, 100 more scans": many_scans(8000, 101),
        "JPEG, 1000 x 1000, 5000 scans": many_scans(1000, 5000 // factor),
        "PNG, 1 x 80,000,000": png(1, 80_000_000 // factor, 1, 0, 1),
        "JPEG, 300,000 markers": small[:2] + exif * (300_000 // factor) + small[2:],
        # Within the limits: they take long, and only their own client waits.
        "PNG, 8944 x 8944, RGBA": png(8944, 8944 // factor, 8, 6, 8944 * 4),
        "WebP, 16383 x 4880": _saved(Image.new("RGB", (16383, 4880 // factor)), "WEBP"),
    }


def _heavy_images(victim: Victim) -> Iterator[Outcome]:
    for index, (name, image) in enumerate(heavy_images(victim.large).items()):
        for end in victim.infer(image, _MODELS[index % 2]):
            yield name, end


def _inflation(victim: Victim) -> Iterator[Outcome]:
    path, headers, _ = http_request(_MODELS[0], b"")
    yield "a gzip file of zeros", victim.post(path, _bomb(victim.large), {**headers, "Content-Encoding": "gzip"})
    yield "a message of zeros", victim.call("ModelInfer", bytes(1 << (30 if victim.large else 27)))


@cache
def _bomb(large: bool) -> bytes:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb") as file:
        for _ in range(64 if large else 8):
            file.write(bytes(1 << 24))
    return packed.getvalue()


def _parameters(victim: Victim) -> Iterator[Outcome]:
    values = {f"unknown{index}": index for index in range(20_000 if victim.large else 2_500)}
    path, headers, body = http_request(_MODELS[0], victim.picture, None, values)
    yield "parameters", victim.post(path, body, headers)


def _empty_region(victim: Victim) -> Iterator[Outcome]:
    yield from _shared_memory(victim, 0)


def _missing_rows(victim: Victim) -> Iterator[Outcome]:
    for end in victim.infer(short_tiff(192, 128, 60_000)):
        yield "TIFF without most of its rows", end


def short_tiff(width: int, height: int, said: int) -> bytes:
    """An uncompressed TIFF file that says to have more rows than it has."""
    data = bytearray(_saved(Image.new("RGB", (width, height), (255, 255, 255)), "TIFF"))
    directory = int.from_bytes(data[4:8], "little")
    for entry in range(
        directory + 2, directory + 2 + 12 * int.from_bytes(data[directory : directory + 2], "little"), 12
    ):
        if int.from_bytes(data[entry : entry + 2], "little") in (257, 278):
            data[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, said)
    return bytes(data)


def _odd_protocol(victim: Victim) -> Iterator[Outcome]:
    path, headers, body = http_request(_MODELS[0], victim.picture)
    length = int(headers[_LENGTH])
    for shape in ([0, 1], [2**62, 1], [-(2**63), 1], [2**32 + 1, 1]):
        message = json.loads(body[:length])
        message["inputs"][0]["shape"] = shape
        head = json.dumps(message).encode()
        yield f"shape {shape}", victim.post(path, head + body[length:], {_LENGTH: str(len(head))})
    yield "malformed JSON", victim.post(path, b"{", {})
    for value in (f"{length},{length}", f"+{length}", f"{length}.5", "-1", "x", "0"):
        yield f"length {value.replace(str(length), 'N')}", victim.post(path, body, {_LENGTH: value})
    start = f"POST {path} HTTP/1.1\r\nHost: x\r\n".encode()
    smuggled = b"0\r\n\r\nGET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"
    yield "two lengths", victim.wire(start + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" + smuggled)
    yield (
        "two values of the length",
        victim.wire(
            start + f"{_LENGTH}: 0\r\n{_LENGTH}: {length}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        ),
    )
    yield "200,000 header lines", victim.wire(b"GET /v2 HTTP/1.1\r\nHost: x\r\n", b"a: b\r\n" * 200_000, b"\r\n")
    for name, value in (("max_candidates", "1_0"), ("thresh", "\u0661"), ("thresh", "x" * 10_000)):
        _, more, data = http_request(_MODELS[0], victim.picture, None, {name: value})
        yield f"{name} {value[:3]!r}", victim.post(path, data, more)
    message = grpc_request(_MODELS[0], victim.picture)
    message.id = "i" * (1 << 20)
    yield "an id of a megabyte", victim.call("ModelInfer", message)
    message = grpc_request(_MODELS[0], victim.picture)
    message.parameters["thresh"].string_param = "9" * (2 << 20)
    yield "a parameter of two megabytes", victim.call("ModelInfer", message)
    yield "no protobuf", victim.call("ModelInfer", b"\xff" * 100)
    yield from _idle_connections(victim)


def _idle_connections(victim: Victim) -> Iterator[Outcome]:
    host, _, port = victim.target.http.rpartition(":")
    opened = []
    for index in range(100):
        with suppress(OSError):
            opened.append(socket.create_connection((host, int(port)), 10))
            opened[-1].sendall((b"", b"POST /v2", b"POST /v2 HTTP/1.1\r\nContent-Length: 99\r\n\r\nx")[index % 3])
    for connection in opened:
        connection.close()
    yield "100 idle connections", "closed"


ATTACKS = (
    Attack("foreign memory", "reads and writes memory of the server's processes", _foreign_memory),
    Attack("chunks", "overflows the HTTP server's stack", _chunks, triton=False),
    Attack("lying length", "fails the requests of its batch", _lying_length),
    Attack("heavy images", "lets all wait for their decoding", _heavy_images, harmless=frozenset({"200", "OK"})),
    Attack("inflation", "takes gigabytes of memory", _inflation, triton=False, clients=1),
    Attack("parameters", "stops HTTP for seconds", _parameters, triton=False),
    Attack("empty region", "cuts connections of others", _empty_region),
    Attack("missing rows", "is accepted, most of it black", _missing_rows),
    Attack("odd protocol", "is understood in two ways", _odd_protocol, triton=False, harmless=frozenset({"200", "OK"})),
)
