# SPDX-License-Identifier: Apache-2.0
"""Growing of quads in single precision: what it decides must be what double precision has."""

from collections.abc import Iterator

import numpy as np
import pytest
from cuda_emulator import package_sources, run_kernel
from numpy.typing import NDArray

_KERNEL = """
#include "unclip.cuh"

// Grid: a warp for each quad.
extern "C" __global__ void __launch_bounds__(32) grow_both(const Quad* quads, const double* ratios, float* distances,
                                                           int* counts, int* points) {
    __shared__ Quad quad;
    const int index = blockIdx.x, lane = threadIdx.x;
    if (lane == 0) quad = quads[index];
    __syncwarp();
    const Estimate distance = estimated_distance(quad, static_cast<float>(ratios[index]), lane & 3);
    const int single = grow_in_single(quad, static_cast<float>(ratios[index]), points + 1024 * index, lane);
    const int both = grow_in_double(quad, ratios[index], points + 1024 * index + 512, lane);
    if (lane) return;
    distances[2 * index] = distance.value;
    distances[2 * index + 1] = distance.error;
    counts[2 * index] = single;
    counts[2 * index + 1] = both;
}
"""
_UNDECIDED = -1

Quads = NDArray[np.float32]
Ratios = NDArray[np.float64]


def grown(quads: Quads, ratios: Ratios, **changed: str) -> tuple[NDArray[np.float32], NDArray[np.int32], list[bool]]:
    """Distances and their bounds (N, 2), numbers of points in single and in double precision (N, 2), and whether the
    points are the same (N,)."""
    distances = np.zeros((len(quads), 2), np.float32)
    counts = np.zeros((len(quads), 2), np.int32)
    points = np.zeros((len(quads), 2, 512), np.int32)
    # Quad is x[4], y[4].
    planes = np.ascontiguousarray(quads.transpose(0, 2, 1))
    sources = {name.replace("_cuh", ".cuh"): text for name, text in changed.items()}
    run_kernel(_KERNEL, "grow_both", len(quads), 32, planes, ratios, distances, counts, points, sources=sources)
    same = [
        bool((single == double) and (ours[:single] == theirs[:single]).all())
        for (single, double), (ours, theirs) in zip(counts, points, strict=True)
    ]
    return distances, counts, same


def rectangles(rng: np.random.Generator, count: int) -> Quads:
    """Rectangles of text, some of them turned."""
    sides = np.exp(rng.uniform(np.log((6, 4)), np.log((900, 120)), (count, 2)))
    angles = np.where(rng.random(count) < 0.3, 0.0, rng.uniform(-np.pi, np.pi, count))
    aligned = np.where((angles == 0)[:, None], np.round(sides), sides)
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]) * aligned[:, None]
    turn = np.array([[np.cos(angles), np.sin(angles)], [-np.sin(angles), np.cos(angles)]]).transpose(2, 0, 1)
    centres = np.where((angles == 0)[:, None], np.round(rng.uniform(0, 1200, (count, 2))) + aligned / 2 % 1, 0)
    centres = np.where((angles == 0)[:, None], centres, rng.uniform(0, 1200, (count, 2)))
    return (corners @ turn + centres[:, None]).astype(np.float32)


def exact_distances(quads: Quads, ratios: Ratios) -> NDArray[np.longdouble]:
    """Area * ratio / perimeter, in extended precision."""
    corners = quads.astype(np.longdouble)
    following = np.roll(corners, -1, axis=1)
    x, y, next_x, next_y = corners[..., 0], corners[..., 1], following[..., 0], following[..., 1]
    areas = np.abs((x * next_y - y * next_x).sum(axis=1)) / 2
    perimeters = np.sqrt(((following - corners) ** 2).sum(axis=2)).sum(axis=1)
    result: NDArray[np.longdouble] = areas * ratios / perimeters
    return result


def ratios_of(quads: Quads, distances: NDArray[np.float64]) -> Ratios:
    """Ratios by which the quads grow that far."""
    return (distances / exact_distances(quads, np.ones(len(quads)))).astype(np.float64)


def _offsets(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Zero, and numbers of both signs from 2^-45 to 2^-4."""
    return rng.choice([-1, 0, 1], count) * 2.0 ** rng.uniform(-45, -4, count)


def near_ties(rng: np.random.Generator, count: int) -> Iterator[tuple[Quads, Ratios]]:
    """Quads with a number close to where its comparison or rounding changes: points, steps, and a sharp corner."""
    quads, offsets = rectangles(rng, count), _offsets(rng, count)
    corners = np.trunc(quads.astype(np.float64))
    edge = corners[:, 1] - corners[:, 0]
    normal = np.abs(edge[:, ::-1] / np.hypot(*edge.T)[:, None]).max(axis=1)
    yield quads, ratios_of(quads, (rng.integers(2, 60, count) + 0.5 + offsets) / normal)

    width, height = rng.integers(4, 400, (2, count))
    zero = np.zeros(count)
    columns, rows = np.stack([zero, width, width, zero], axis=1), np.stack([zero, zero, height, height], axis=1)
    upright = np.stack([columns, rows], axis=2).astype(np.float32)
    steps = rng.integers(1, 20, count) + 0.5 + offsets
    yield upright, ratios_of(upright, 0.25 / (1 - np.cos(np.pi / (4 * steps))))

    height = rng.integers(3, 40, count)
    shear = height * rng.integers(3, 40, count)
    columns, rows = (
        columns + np.stack([zero, zero, shear, shear], axis=1),
        np.stack([zero, zero, height, height], axis=1),
    )
    sheared = np.stack([columns, rows], axis=2).astype(np.float32)
    sine = height / np.hypot(height, shear)
    yield sheared, ratios_of(sheared, 1 / sine * (1 + offsets))


def _check(rng: np.random.Generator, count: int) -> dict[str, float]:
    """Compare ordinary quads and near ties; returns the shares that are not decided."""
    ordinary = rectangles(rng, count), rng.choice([1.5, 1.7, 2.0], count)
    shares = {}
    for name, (quads, ratios) in zip(
        ("ordinary", "points", "steps", "corners"), (ordinary, *near_ties(rng, count)), strict=True
    ):
        distances, counts, same = grown(quads, ratios)
        assert (np.abs(distances[:, 0] - exact_distances(quads, ratios)) <= distances[:, 1]).all()
        decided = counts[:, 0] != _UNDECIDED
        assert np.array(same)[decided].all()
        shares[name] = 1 - decided.mean()
    return shares


def test_what_single_precision_decides_is_what_double_precision_has(rng: np.random.Generator) -> None:
    shares = _check(rng, 600)
    # Of ordinary quads few need double precision; of those made to be ties, those that are close.
    assert shares["ordinary"] < 0.1
    assert 0.2 < shares["points"] < 0.9
    assert 0.2 < shares["steps"] < 0.9


# The least accurate `atan2f` that the CUDA C++ Programming Guide permits.
_THREE_ULP_OFF = """
__device__ __forceinline__ float inaccurate_atan2f(float y, float x) {
    float value = atan2f(y, x);
    const float direction = static_cast<int>(value * 1e6f) & 1 ? INFINITY : -INFINITY;
    for (int i = 0; i < 3; ++i) value = nextafterf(value, direction);
    return value;
}
"""


def test_what_is_decided_does_not_depend_on_the_library_of_the_device(rng: np.random.Generator) -> None:
    text = package_sources()["unclip.cuh"]
    head, body = text.replace("atan2f(", "inaccurate_atan2f(").split("struct Estimate")
    for quads, ratios in near_ties(rng, 600):
        _, counts, same = grown(quads, ratios, unclip_cuh=f"{head}{_THREE_ULP_OFF}struct Estimate{body}")
        decided = counts[:, 0] != _UNDECIDED
        assert decided.any()
        assert np.array(same)[decided].all()


def _extremes(rng: np.random.Generator, count: int) -> Iterator[tuple[Quads, Ratios]]:
    """Quads of any shape, size and place, with ratios of any magnitude, and numbers that are none."""
    ratios = rng.uniform(0.1, 4, count)
    yield rectangles(rng, count), 2.0 ** rng.uniform(-60, 60, count)
    yield rectangles(rng, count), rng.choice([np.nan, np.inf, -np.inf, -1.0, 0.0], count)
    yield rng.uniform(0, 20_000, (count, 4, 2)).astype(np.float32), ratios
    yield rng.uniform(0, 64, (count, 4, 2)).astype(np.float32), 10 * ratios
    yield rectangles(rng, count) * 2 ** rng.uniform(-30, 3, (count, 1, 1)).astype(np.float32), 10 * ratios
    # Some of these would leave the range of packed points.
    yield rectangles(rng, count) + rng.uniform(29_000, 30_000, (count, 1, 1)).astype(np.float32), ratios
    flat = rectangles(rng, count)
    flat[:, 2:] = flat[:, 1::-1]
    yield flat, ratios


def test_nothing_is_decided_wrongly_at_the_limits(rng: np.random.Generator) -> None:
    quads, ratios = (np.concatenate(parts) for parts in zip(*_extremes(rng, 150), strict=True))
    _, counts, same = grown(quads, ratios)
    decided = counts[:, 0] != _UNDECIDED
    assert 0.1 < decided.mean() < 0.9
    assert np.array(same)[decided].all()


@pytest.mark.long
def test_hundreds_of_thousands_of_quads_agree() -> None:
    rng = np.random.default_rng()
    for _ in range(100):
        _check(rng, 1000)


@pytest.mark.parametrize(
    "bound",
    ["distance.error + 10 * ULP * d", "(32 * ULP + exact_steps * (distance.error / d + 12 * ULP)) / per_step"],
)
def test_without_a_bound_of_the_error_some_quads_differ(rng: np.random.Generator, bound: str) -> None:
    text = package_sources()["unclip.cuh"]
    assert bound in text
    cases = list(near_ties(rng, 600))[:2]
    quads, ratios = (np.concatenate(parts) for parts in zip(*cases, strict=True))
    _, counts, same = grown(quads, ratios, unclip_cuh=text.replace(bound, "0.0f"))
    assert not np.array(same)[counts[:, 0] != _UNDECIDED].all()
