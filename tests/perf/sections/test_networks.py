# SPDX-License-Identifier: Apache-2.0
"""The networks alone: pairs of times, and that plain ONNX Runtime computes our map."""

import time

import numpy as np

from ocdserve.backend import Bundle
from ocdserve.backend.network.load import load_network
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.perf.inputs.pictures import street
from ocdserve.perf.sections.networks import PLAIN, measure_networks
from ocdserve.perf.series.estimates import ratio
from ocdserve.perf.subjects.networks import plain_onnxruntime


def test_wall_and_cpu_times_are_paired_with_those_of_plain_onnxruntime() -> None:
    def busy() -> None:
        end = time.thread_time() + 0.004
        while time.thread_time() < end:
            pass

    steps = []
    found = measure_networks(
        {"page": {PLAIN: busy, "asleep": lambda: time.sleep(0.03)}}, 7, lambda done, total: steps.append((done, total))
    )
    assert [(one.subject, one.factors["clock"], len(one.samples)) for one in found] == [
        (PLAIN, "wall", 7),
        ("asleep", "wall", 7),
        (PLAIN, "CPU", 7),
        ("asleep", "CPU", 7),
    ]
    assert {one.baseline for one in found} == {PLAIN} and steps[-1] == (7, 7)
    assert min(found[1].samples) >= 30 and min(found[0].samples) >= 4
    assert ratio(found[3], found[2]).value < 0.5 and ratio(found[3], found[2]).has_enough_samples


def test_plain_onnxruntime_computes_the_map_of_the_bundle() -> None:
    bundle = Bundle.load()
    page = np.asarray(street().image.resize((256, 128)), np.uint8)
    (expected,) = plain_onnxruntime(bundle, 1, page)()[0]
    (found,) = load_network(bundle, RuntimeOptions("onnxruntime", threads=1)).infer([page])
    assert found.max() > 200  # there is text
    np.testing.assert_allclose(found, expected * 255, atol=0.51)
