# SPDX-License-Identifier: Apache-2.0
"""Start a server, send it all images of a folder concurrently, stop it: serve_and_ask.py FOLDER

A service would use the server that `ocdserve serve` started, and `AsyncTextDetector("grpc://HOST:8001")`.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from ocdserve.backend.publish.repository import PublishOptions, publish
from ocdserve.backend.serve import ServeOptions, running_server
from ocdserve.client import AsyncTextDetector
from ocdserve.contract import is_image


async def ask(url: str, images: list[Path]) -> None:
    async with AsyncTextDetector(url) as detector:
        async for outcome in detector.detect_many(images, concurrency=8):
            print(outcome.image, outcome.error or f"{len(outcome.result())} texts")


def main(folder: Path) -> None:
    images = sorted(filter(is_image, folder.rglob("*")))
    with tempfile.TemporaryDirectory() as workspace:
        repository = publish(PublishOptions(Path(workspace) / "models"))
        options = ServeOptions(repository, http_port=0, grpc_port=0, metrics_port=0)  # 0: free ones
        with running_server(options) as server:
            asyncio.run(ask(server.grpc_url, images))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
