# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import ocdserve.client


def test_the_public_names_are_exactly_these() -> None:
    assert ocdserve.client.__all__ == [
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
    assert all(hasattr(ocdserve.client, name) for name in ocdserve.client.__all__)


def test_importing_the_client_loads_neither_protocol_library_nor_server_packages() -> None:
    code = (
        "import sys, ocdserve.client\n"
        "heavy = ('grpc', 'aiohttp', 'gevent', 'geventhttpclient', 'cv2', 'PIL', 'openvino', 'torch',"
        " 'tensorrt', 'onnxruntime', 'ocdserve.backend')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_who_detects_loads_nothing_of_reading_and_who_reads_no_documents() -> None:
    code = (
        "import sys\n"
        "from ocdserve.client import TextDetector\n"
        "print(any('ocdserve.results.reading' in name for name in sys.modules))\n"
        "from ocdserve.client import TextReader\n"
        "print('ocdserve.results.reading' in sys.modules, 'ocdserve.results.reading.markup' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"]
    assert {"TextReader", "Word"} <= set(dir(ocdserve.client))
