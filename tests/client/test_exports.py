# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import ocdserve.client


def test_the_public_names_are_exactly_these() -> None:
    assert sorted(ocdserve.client.__all__) == [
        "Detections",
        "InferRequest",
        "InvalidInputError",
        "MockTransport",
        "OcdserveError",
        "ServerError",
        "TextDetector",
        "Transport",
        "UnavailableError",
    ]
    assert all(hasattr(ocdserve.client, name) for name in ocdserve.client.__all__)


def test_importing_the_client_loads_neither_protocol_library_nor_server_packages() -> None:
    code = (
        "import sys, ocdserve.client\n"
        "heavy = ('grpc', 'gevent', 'geventhttpclient', 'cv2', 'PIL', 'openvino', 'onnxruntime', 'ocdserve.backend')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
