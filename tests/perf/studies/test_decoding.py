# SPDX-License-Identifier: Apache-2.0
import io

import numpy as np
import pytest
from PIL import Image

from ocdserve.perf.studies import decoding


def photo(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (9, 16, 3), np.uint8)
    Image.fromarray(noise).resize((width, height)).save(stream, "JPEG")
    return stream.getvalue()


def test_the_decoders_are_compared_on_the_same_pixels() -> None:
    ours, theirs, blue_first = (decode(photo(64, 48)) for decode in decoding.DECODERS.values())
    assert np.array_equal(ours, theirs)
    assert np.array_equal(ours, blue_first[..., ::-1])


def test_work_that_holds_python_s_lock_makes_threads_late() -> None:
    # One operation, between whose beginning and end no other thread runs.
    numbers = 7**200_000
    assert decoding.latest_ms(lambda: numbers * numbers % 10**100_000) > 5


@pytest.mark.long
def test_the_report_says_which_limits_hold() -> None:
    lines = list(decoding.report([photo(90, 160)] * 4, [photo(1280, 720)] * 2, 1))
    assert [line.partition(":")[0] for line in lines if line.endswith(("yes", "NO"))] == [
        "CPU time, ocdserve / Pillow",
        "CPU time, ocdserve / OpenCV",
        "scaling of ocdserve, at least 1.75",
        "lateness of ocdserve, at most 6.0 ms",
    ]
