# SPDX-License-Identifier: Apache-2.0
"""The playground with the real server in a real browser, and the code that it shows, executed."""

import html
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from ocdserve.backend import Bundle
from ocdserve.backend.publish.repository import PublishOptions, publish
from ocdserve.backend.serve import TritonServer
from ocdserve.cli.play import served_defaults
from ocdserve.cli.playground import PlayOptions, PlayServer
from ocdserve.client import TextDetector
from ocdserve.perf.inputs.pictures import demo_pictures

REPOSITORY = Path(__file__).resolve().parents[2]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.triton
def test_the_sliders_start_at_the_thresholds_of_the_served_bundle(
    running_server: Callable[..., AbstractContextManager[TritonServer]], tmp_path: Path
) -> None:
    default = Bundle.load()
    thresholds = replace(default.spec.postprocess, thresh=0.25, box_thresh=0.45, max_candidates=77, polygons=True)
    Bundle(replace(default.spec, postprocess=thresholds), default.model_path).save(tmp_path / "bundle")
    with running_server(publish(PublishOptions(tmp_path / "models", tmp_path / "bundle"))) as server:
        for url in (server.http_url, server.grpc_url):
            assert served_defaults(url) == {
                "thresh": 0.25,
                "box_thresh": 0.45,
                "unclip_ratio": 1.5,
                "max_candidates": 77,
                "min_size": 3,
                "polygons": False,
            }


@pytest.mark.triton
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (Debian: apt install chromium)")
def test_the_page_and_the_code_that_it_shows_give_the_servers_answer(
    default_server: TritonServer, tmp_path: Path
) -> None:
    picture = next(picture for picture in demo_pictures() if picture.name == "receipt")
    (tmp_path / "receipt.png").write_bytes(picture.png())
    browser = [str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    browser += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1440,980", "--virtual-time-budget=60000"]
    url = default_server.http_url
    with TextDetector(url) as detector:
        expected = len(detector.detect(picture.png(), box_thresh=0.6))
        options = PlayOptions(
            detector.detect,
            source=url,
            url=url,
            port=0,
            defaults={"thresh": 0.3, "box_thresh": 0.6, "unclip_ratio": 1.5, "max_candidates": 1000, "min_size": 3},
            samples=lambda: {"receipt.png": picture.png()},
        )
        with PlayServer(options) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            page = f"{server.address}/?sample=receipt&box_thresh=0.6"
            kept = REPOSITORY / "out" / "play" / "server.png"
            kept.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run([*browser, f"--screenshot={kept}", page], capture_output=True, timeout=120, check=True)
            python, curl = (
                subprocess.run(
                    [*browser, "--dump-dom", f"{page}{tab}"], capture_output=True, text=True, timeout=120, check=True
                ).stdout
                for tab in ("", "&tab=curl")
            )
            server.shutdown()
            thread.join()
    assert f'data-boxes="{expected}"' in python
    assert python.count("<polygon points=") == expected > 20

    def code(dom: str) -> str:
        [found] = re.findall(r'<code id="snippet">(.*?)</code>', dom, re.DOTALL)
        return html.unescape(found)

    finished = subprocess.run(
        [sys.executable, "-c", f"{code(python)}\nprint(len(found))"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stdout.splitlines()[-1] == str(expected)
    answered = subprocess.run(["bash", "-c", code(curl)], cwd=tmp_path, capture_output=True, check=True).stdout
    [count] = [one for one in json.loads(answered.rpartition(b"}")[0] + b"}")["outputs"] if one["name"] == "COUNT"]
    assert count["data"] == [expected]
