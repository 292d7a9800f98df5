# SPDX-License-Identifier: Apache-2.0
"""`TextReader` and a real server: what it reads is what a `Reader` reads in process, to the last bit."""

import asyncio
import io
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ocdserve.backend import Reader
from ocdserve.backend.serve import TritonServer
from ocdserve.client import AsyncTextReader, Reading, SharedMemory, TextReader
from ocdserve.perf.inputs.pictures import street

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def sign() -> NDArray[np.uint8]:
    """The upper part of the drawn street, 960 x 200."""
    return np.ascontiguousarray(np.asarray(street().image.convert("RGB"))[:200])


def values(reading: Reading) -> dict[str, Any]:
    """What was read, in bits."""
    assert type(reading) is Reading
    names = [one.name for one in fields(Reading) if one.name not in ("latency_ms", "request_id", "words")]
    content = {name: getattr(reading, name) for name in names}
    bits = {name: value.tobytes() if isinstance(value, np.ndarray) else value for name, value in content.items()}
    words = reading.words and [
        [(word.text, word.score, word.quad.tobytes()) for word in line] for line in reading.words
    ]
    return bits | {"words": words}


def test_pages_of_a_file_are_read_as_in_process(
    default_server: TritonServer, reader: Reader, sign: NDArray[np.uint8]
) -> None:
    stream = io.BytesIO()
    Image.fromarray(sign).save(stream, "TIFF", save_all=True, append_images=[Image.fromarray(sign[:, 480:])])
    expected = list(reader.read_pages(stream.getvalue()))
    with TextReader(default_server.http_url) as client:
        assert client.ready()
        assert client.capabilities().reads
        found = list(client.read_pages(stream.getvalue()))
    assert list(map(values, found)) == list(map(values, expected))
    assert [page.page for page in found] == [1, 2]
    assert "BAKERY" in found[0].text
    assert "BAKERY" not in found[1].text


def test_tiles_are_read_as_in_process_even_upside_down(
    default_server: TritonServer, reader: Reader, sign: NDArray[np.uint8]
) -> None:
    memory = SharedMemory(token=default_server.options.shared_memory)
    turned = np.ascontiguousarray(sign[::-1, ::-1])
    options: Any = {"tile": 500, "overlap": 200, "words": True}
    with TextReader(default_server.grpc_url, shared_memory=memory) as client:
        found = client.read_tiled(turned, **options)
    assert values(found) == values(reader.read_tiled(turned, **options))
    assert {"BAKERY", "STATION"} <= set(found.texts)


def test_an_image_is_read_asynchronously_as_in_process(
    default_server: TritonServer, reader: Reader, sign: NDArray[np.uint8]
) -> None:
    stream = io.BytesIO()
    Image.fromarray(sign).save(stream, "PNG")

    async def ask() -> Reading:
        async with AsyncTextReader(default_server.grpc_url) as client:
            return await client.read(stream.getvalue(), words=True)

    assert values(asyncio.run(ask())) == values(reader.read(stream.getvalue(), words=True))
