# SPDX-License-Identifier: Apache-2.0
"""What the rules and the dashboard ask, asked of a real Prometheus that scrapes the real server."""

import io
import math
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ocdserve.backend.publish.repository import PublishOptions, publish
from ocdserve.backend.serve import TritonServer
from ocdserve.client import TextDetector
from tests.deploy.prometheus import FILES, prometheus
from tests.deploy.test_rules import ALERTS, expressions

# They have no value while the server is well.
ABSENT = ("OcdserveDown", "OcdserveNotReady")


@pytest.mark.long
@pytest.mark.triton
def test_every_expression_has_a_finite_value(
    tool: Callable[[str], Path],
    tmp_path: Path,
    red_bundle: Path,
    running_server: Callable[..., AbstractContextManager[TritonServer]],
) -> None:
    program = tool("prometheus")
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[10:20, 20:60] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    rules = (FILES / "rules.yaml").read_text("utf-8")
    absent = [ALERTS[name]["expr"] for name in ABSENT]
    # Without the threshold of an alert.
    asked = [re.sub(r" > [\d.]+\s*$", "", one) for one in expressions() if one not in absent]
    assert len(asked) > 28
    with running_server(publish(PublishOptions(tmp_path / "models", red_bundle, threads=1))) as server:
        target = server.metrics_url.split("/")[2]
        with prometheus(program, tmp_path, [target], rules) as running:
            plain, fused = TextDetector(server.grpc_url), TextDetector(server.grpc_url, model="ocdnet_fused")
            wrong: dict[str, object] = {"nothing": "asked yet"}
            deadline = time.monotonic() + 60
            while wrong:
                assert time.monotonic() < deadline, wrong
                for detector, image in ((plain, file.getvalue()), (plain, pixels), (fused, file.getvalue())):
                    assert len(detector.detect(image)) == 1
                time.sleep(1)
                values = {one: running.query(one) for one in asked}
                wrong = {
                    one: found
                    for one, found in values.items()
                    if not found or not all(math.isfinite(value) for _, value in found)
                }
            assert [running.query(one) for one in absent] == [[], []]
            assert running.firing() == set()
            plain.close()
            fused.close()
