# SPDX-License-Identifier: Apache-2.0
"""Lengths and angles in single precision: the floats nearest to the exact numbers, as double precision has them."""

import re
from collections.abc import Callable

import numpy as np
import pytest
from cuda_emulator import package_sources, run_kernel
from numpy.typing import NDArray

_KERNEL = """
#include "single.cuh"

extern "C" __global__ void __launch_bounds__(128) directions(const float* x, const float* y, const float* angle,
                                                             float* results, int count) {
    const int i = blockIdx.x * 128 + threadIdx.x;
    if (i >= count) return;
    results[6 * i] = Single::length(x[i], y[i]);
    results[6 * i + 1] = Single::inverse_length(x[i], y[i]);
    results[6 * i + 2] = Single::radians(y[i], x[i]);
    results[6 * i + 3] = Single::degrees(angle[i] / 57.0f);
    const SineAndCosine direction = Single::sine_and_cosine(angle[i]);
    results[6 * i + 4] = direction.sine;
    results[6 * i + 5] = direction.cosine;
}

extern "C" __global__ void __launch_bounds__(128) pairs(const float* y, const float* x, const float* angle,
                                                        double* results, int count) {
    const int i = blockIdx.x * 128 + threadIdx.x;
    if (i >= count) return;
    Pair sine, cosine;
    turned(angle[i], sine, cosine);
    const Pair of[3] = {octant_angle(y[i], x[i]), sine, cosine};
    for (int j = 0; j < 3; ++j) results[3 * i + j] = static_cast<double>(of[j].high) + of[j].low;
}
"""
_NAMES = ("length", "inverse length", "radians", "degrees", "sine", "cosine")

Floats = NDArray[np.float32]
Exact = NDArray[np.longdouble]

_PI = np.longdouble(np.pi) + np.longdouble("1.2246467991473531772e-16")


def exact(x: Floats, y: Floats, angle: Floats) -> Exact:
    """The results in extended precision, (6, N); sines and cosines of the angle that double precision has."""
    wide_x, wide_y = x.astype(np.longdouble), y.astype(np.longdouble)
    length = np.sqrt(wide_x * wide_x + wide_y * wide_y)
    turns = ((angle / np.float32(57)).astype(np.float32) * np.float32(180)).astype(np.longdouble)
    radians = (angle.astype(np.float64) * (np.pi / 180)).astype(np.longdouble)
    return np.stack([length, 1 / length, np.arctan2(wide_y, wide_x), turns / _PI, np.sin(radians), np.cos(radians)])


def computed(x: Floats, y: Floats, angle: Floats, **changed: str) -> Floats:
    """What the kernel has, (6, N)."""
    results = np.zeros((len(x), 6), np.float32)
    sources = {f"{name}.cuh": text for name, text in changed.items()}
    run_kernel(_KERNEL, "directions", -(-len(x) // 128), 128, x, y, angle, results, np.int32(len(x)), sources=sources)
    return results.T


def inputs(rng: np.random.Generator, count: int) -> tuple[Floats, Floats, Floats]:
    """Edges between pixels, some of them axis-aligned, and angles in degrees."""
    size = 2.0 ** rng.uniform(0, 15.5, count)
    x, y = np.round(rng.uniform(-1, 1, (2, count)) * size)
    x[::16] = 0
    y[8::16] = 0
    x += (x == 0) & (y == 0)
    angle = rng.uniform(-180, 180, count)
    angle[::16] = np.round(angle[::16] / 90) * 90
    angle[1::16] = np.round(angle[1::16] / 90) * 90 + rng.uniform(-1, 1, count)[1::16] * 1e-4
    return x.astype(np.float32), y.astype(np.float32), np.clip(angle, -180, 180).astype(np.float32)


def nearest_ties(rng: np.random.Generator, count: int, of: int) -> tuple[Floats, Floats, Floats]:
    """Of so many inputs those, for each result, that are closest to the middle between two floats."""
    given = inputs(rng, of)
    # Edges are turned to the sides of rectangles, which are no whole numbers.
    given[0][1::2] *= np.float32(0.7312)
    given[1][1::2] *= np.float32(0.4177)
    chosen = []
    for values in exact(*given):
        nearest = values.astype(np.float32)
        spacing = np.spacing(np.abs(nearest)).astype(np.longdouble)
        from_tie = np.abs(np.abs((values - nearest) / spacing) - 0.5)
        chosen.append(np.argpartition(from_tie, count)[:count])
    x, y, angle = (each[np.concatenate(chosen)] for each in given)
    return x, y, angle


def _check(given: tuple[Floats, Floats, Floats]) -> None:
    expected = exact(*given).astype(np.float32)
    whole = (given[0] == np.round(given[0])) & (given[1] == np.round(given[1]))
    for name, ours, theirs in zip(_NAMES, computed(*given), expected, strict=True):
        of = whole if name == "inverse length" else np.ones_like(whole)
        np.testing.assert_array_equal(ours[of], theirs[of], err_msg=name)


def test_floats_are_those_nearest_to_the_exact_numbers(rng: np.random.Generator) -> None:
    _check(inputs(rng, 20_000))


def test_also_where_two_floats_are_about_equally_near(rng: np.random.Generator) -> None:
    _check(nearest_ties(rng, 200, 100_000))


def test_of_the_smallest_numbers_too(rng: np.random.Generator) -> None:
    """Down to the least float, both zeros, and one number far smaller than the other."""
    count = 20_000
    x, y, angle = (rng.choice([-1, 1], count) * 2 ** rng.uniform(-149, most, count) for most in (17, 17, 7.49))
    y[::2] = x[::2] * 2 ** rng.uniform(-60, 0, count // 2)
    for place, zero in enumerate((0.0, -0.0)):
        x[place::32] = zero
        y[place + 7 :: 32] = zero
        angle[place::64] = zero
    given = x.astype(np.float32), y.astype(np.float32), angle.astype(np.float32)
    given[0][(given[0] == 0) & (given[1] == 0)] = 1
    with np.errstate(over="ignore"):  # the inverse of a length
        _check(given)
    radians, sine = computed(*given)[[2, 4]]
    np.testing.assert_array_equal(np.signbit(radians), np.signbit(given[1]))
    np.testing.assert_array_equal(np.signbit(sine), np.signbit(given[2]))


@pytest.mark.long
@pytest.mark.parametrize("draw", [lambda rng: inputs(rng, 500_000), lambda rng: nearest_ties(rng, 2000, 2_000_000)])
def test_over_millions(draw: Callable[[np.random.Generator], tuple[Floats, Floats, Floats]]) -> None:
    for _ in range(8):
        _check(draw(np.random.default_rng()))


def test_double_precision_is_rarely_needed(rng: np.random.Generator) -> None:
    """Without it, those results are missing that are close to a tie."""
    text = re.sub(
        r"static (\w+) (\w+)\([^)]*\) {.*?\n    }",
        lambda found: found[0][: found[0].index("(")] + "(float, float = 0) { return {}; }",
        package_sources()["directions.cuh"],
        flags=re.DOTALL,
    )
    given = inputs(rng, 20_000)
    expected = exact(*given).astype(np.float32)
    missing = (computed(*given, directions=text) != expected).mean(axis=1)
    assert (missing < 0.01).all(), missing


def test_the_errors_of_pairs_are_within_their_bounds(rng: np.random.Generator) -> None:
    count = 20_000
    x = np.exp(rng.uniform(-5, 10, count)).astype(np.float32)
    y = np.minimum(x * rng.choice([rng.random(count), np.exp(rng.uniform(-20, 0, count))]), x).astype(np.float32)
    angle = rng.uniform(-45, 45, count).astype(np.float32)
    angle[::2] *= np.exp(rng.uniform(-14, 0, count // 2)).astype(np.float32)
    # Half way between two entries of a table, where the most is left for the series.
    y[::4] = x[::4] * (rng.integers(0, 32, count // 4) + 0.5 + rng.normal(0, 1e-3, count // 4)) / 32
    angle[1::4] = 2.8125 * (rng.integers(-16, 16, count // 4) + 0.5 + rng.normal(0, 1e-3, count // 4))
    angle = np.clip(angle, -45, 45)
    results = np.zeros((count, 3))
    run_kernel(_KERNEL, "pairs", -(-count // 128), 128, y, x, angle, results, np.int32(count))
    radians = angle.astype(np.longdouble) * (_PI / 180)
    wide_x, wide_y = x.astype(np.longdouble), y.astype(np.longdouble)
    wanted = np.stack([np.arctan2(wide_y, wide_x), np.sin(radians), np.cos(radians)], axis=1)
    errors = np.abs(results / wanted - 1).max(axis=0)
    assert (errors < 2.0**-33).all(), np.log2(errors)
    # Far less would be a fault of this test.
    assert (errors > 2.0**-44).all(), np.log2(errors)
