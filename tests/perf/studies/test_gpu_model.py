# SPDX-License-Identifier: Apache-2.0
"""The model of a GPU's throughput: what is counted, and which stage bounds."""

import pytest

torch = pytest.importorskip("torch")

from ocdserve.perf.studies import gpu_model  # noqa: E402
from ocdserve.perf.studies.gpu_model import (  # noqa: E402
    Bound,
    Decoding,
    Gpu,
    Layer,
    bound,
    layers_of,
    network_us,
    postprocess_us,
)

# Rates of which half (or all) is a round number.
ROUND = Gpu("round", memory=1000, fp16=100, int8=200, pcie=10, multiprocessors=100)


@pytest.fixture(autouse=True)
def no_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("COMPUTE", 1.0), ("STREAM", 1.0), ("NODE_US", 2.0), ("MEASURE_US", 10.0)):
        monkeypatch.setattr(gpu_model, name, (value, value))
    for name, rounds, value in (("", 109, 0.1), ("SHARED_", 150, 0.02)):
        monkeypatch.setattr(gpu_model, f"{name}ROUNDS", rounds)
        monkeypatch.setattr(gpu_model, f"{name}ROUND_US", (value, value))
    monkeypatch.setattr(gpu_model, "PYTHON_MS", (0.2, 0.2))
    monkeypatch.setattr(gpu_model, "TRITON_MS", (0.3, 0.3))


def test_layers_are_counted_with_what_they_read_and_write() -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.nn.ReLU(), torch.nn.ConvTranspose2d(8, 4, 2, stride=2)
    )

    assert layers_of(network, (32, 64)) == [
        Layer(macs=16 * 32 * 27 * 8, elements=3 * 32 * 64 + 8 * 16 * 32 + 8 * 27),
        Layer(macs=16 * 32 * 8 * 4 * 4, elements=8 * 16 * 32 + 4 * 32 * 64 + 8 * 4 * 4),
    ]


def test_a_layer_takes_the_longer_of_computing_and_moving() -> None:
    computing, moving = Layer(macs=5 * 10**9, elements=10**6), Layer(macs=10**6, elements=50 * 10**6)

    assert network_us([computing], ROUND, False, 0) == pytest.approx(100)
    assert network_us([moving], ROUND, False, 0) == pytest.approx(100)
    assert network_us([computing, moving], ROUND, True, 0) == pytest.approx(100)
    assert network_us([Layer(5 * 10**9, 0, only_fp16=True)], ROUND, True, 0) == pytest.approx(100)


def test_postprocessing_pays_nodes_rounds_and_waves_once_a_batch() -> None:
    once, bytes_us = 11 * 2 + 109 * 0.1 + 150 * 0.02 + 10, 5 * 736 * 1280 / 1e6

    assert postprocess_us(ROUND, 0, 8) == pytest.approx(once / 8 + bytes_us)
    assert postprocess_us(ROUND, 0, 1) == pytest.approx(once + bytes_us)


@pytest.mark.parametrize(
    ("network", "locked", "processes", "expected"),
    [
        (50.0, 0.3, 1, Bound(2000, "Python")),
        (50.0, 0.3, 2, Bound(3616.898, "copy to GPU")),
        (50.0, 0.0, 1, Bound(3616.898, "copy to GPU")),
        (1000.0, 0.3, 4, Bound(975.3, "GPU")),
    ],
)
def test_the_smallest_rate_bounds(network: float, locked: float, processes: int, expected: Bound) -> None:
    found = bound(ROUND, network, Decoding(1.5, locked), processes, 0)

    assert (found.rate, found.by) == (pytest.approx(expected.rate, rel=0.02), expected.by)
