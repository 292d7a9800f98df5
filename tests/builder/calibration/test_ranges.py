# SPDX-License-Identifier: Apache-2.0
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from ocdserve.builder.calibration.ranges import (
    Histogram,
    RangeMethod,
    clipping_range,
    entropy_range,
    magnitude_counts,
    mse_range,
    percentile_range,
)
from ocdserve.contract import InvalidInputError

METHODS: tuple[RangeMethod, ...] = ("minmax", "percentile", "mse", "entropy")
COUNTS = hnp.arrays(np.int64, st.integers(1, 300), elements=st.integers(0, 10**6)).filter(np.any)


def histogram(values: NDArray[Any], bins: int = 2048) -> Histogram:
    values = values.astype(np.float32)
    amax = float(np.abs(values).max())
    return Histogram(magnitude_counts(values, amax, bins), amax)


def squared_error(values: NDArray[Any], limit: float) -> float:
    """Of real rounding to 127 levels on either side of zero."""
    step = limit / 127
    return float(np.mean((values - np.clip(np.rint(values / step), -127, 127) * step) ** 2))


def divergence_by_loops(counts: list[float], kept: int) -> float:
    """Migacz' procedure for one number of bins, written out."""
    reference = counts[:kept]
    outliers = sum(counts[kept:])
    levels: list[list[int]] = [[] for _ in range(128)]
    for position in range(kept):
        levels[position * 128 // kept].append(position)
    candidate = [0.0] * kept
    for members in levels:
        filled = [position for position in members if reference[position] > 0]
        for position in filled:
            candidate[position] = sum(reference[item] for item in members) / len(filled)
    reference = [*reference[:-1], reference[-1] + outliers]
    p_sum, q_sum = sum(reference), sum(candidate)
    result = 0.0
    for p, q in zip(reference, candidate, strict=True):
        if p and not q:
            return float("inf")
        if p:
            result += p / p_sum * np.log((p / p_sum) / (q / q_sum))
    return result


DISTRIBUTIONS = {
    "normal": lambda rng: rng.normal(size=200_000),
    "laplace": lambda rng: rng.laplace(size=200_000),
    "relu": lambda rng: np.maximum(rng.normal(size=200_000), 0),
    "uniform": lambda rng: rng.uniform(-1, 1, 200_000),
    "heavy_tails": lambda rng: rng.standard_t(2, 200_000),
    "outlier": lambda rng: np.append(rng.normal(size=200_000), 100.0),
    "constant": lambda rng: np.full(1000, -3.0),
}


@pytest.fixture(params=DISTRIBUTIONS)
def values(request: pytest.FixtureRequest, rng: np.random.Generator) -> NDArray[np.float32]:
    drawn: NDArray[np.float32] = DISTRIBUTIONS[request.param](rng).astype(np.float32)
    return drawn


class TestMagnitudeCounts:
    def test_counts_by_hand(self) -> None:
        values = np.array([[0, 0.24, -0.26], [0.5, -1, 7]], np.float32)
        assert magnitude_counts(values, 1.0, bins=4).tolist() == [2, 1, 1, 2]

    def test_agrees_with_numpy(self, values: NDArray[np.float32]) -> None:
        magnitudes = np.abs(values.astype(np.float64))
        amax = float(magnitudes.max())
        expected, _ = np.histogram(magnitudes, 2048, (0, amax))
        found = magnitude_counts(values, amax)
        assert found.sum() == values.size
        # A value within float32's precision of an edge may fall on either side of it.
        places = magnitudes / amax * 2048
        edges = np.rint(places).astype(np.intp)
        close = np.bincount(edges[np.abs(places - edges) < 1e-3], minlength=2050)
        assert (np.abs(np.cumsum(found - expected)) <= close[1:2049]).all()

    @given(
        hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
        st.integers(1, 40),
    )
    def test_every_value_is_counted_and_parts_add_up(self, values: NDArray[np.float32], bins: int) -> None:
        amax = float(np.abs(values).max())
        whole = magnitude_counts(values, amax, bins)
        half = len(values) // 2
        parts = magnitude_counts(values[:half], amax, bins) + magnitude_counts(values[half:], amax, bins)
        assert whole.sum() == len(values)
        np.testing.assert_array_equal(whole, parts)

    @pytest.mark.parametrize("amax", [0.0, 1e-45, 1e-39, 3e38])
    def test_extreme_magnitudes(self, amax: float) -> None:
        counts = magnitude_counts(np.array([0, amax, -amax], np.float32), amax, bins=8)
        assert counts.tolist() == ([3, 0, 0, 0, 0, 0, 0, 0] if amax == 0 else [1, 0, 0, 0, 0, 0, 0, 2])


class TestClippingRange:
    @pytest.mark.parametrize("method", METHODS)
    @given(counts=COUNTS, amax=st.floats(1e-30, 1e30))
    def test_is_positive_and_at_most_the_largest_magnitude(
        self, method: RangeMethod, counts: NDArray[np.int64], amax: float
    ) -> None:
        assert 0 < clipping_range(Histogram(counts, amax), method) <= amax

    @pytest.mark.parametrize("method", METHODS)
    @given(counts=COUNTS, power=st.integers(-60, 60))
    def test_scales_with_the_magnitudes(self, method: RangeMethod, counts: NDArray[np.int64], power: int) -> None:
        # Powers of two, so that nothing is rounded.
        found = clipping_range(Histogram(counts, 1.5), method)
        assert clipping_range(Histogram(counts, 1.5 * 2.0**power), method) == found * 2.0**power

    @pytest.mark.parametrize("method", METHODS)
    @given(counts=COUNTS, factor=st.integers(2, 9))
    def test_depends_on_shares_only(self, method: RangeMethod, counts: NDArray[np.int64], factor: int) -> None:
        assert clipping_range(Histogram(counts * 2**factor, 1.0), method) == pytest.approx(
            clipping_range(Histogram(counts, 1.0), method)
        )

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("amax", [0.0, 1e-45, 1e-38])
    def test_a_tensor_of_zeros_has_the_range_one(self, method: RangeMethod, amax: float) -> None:
        assert clipping_range(Histogram(np.array([5, 0]), amax), method) == 1.0

    @pytest.mark.parametrize("method", METHODS)
    def test_the_scale_of_the_smallest_range_is_a_normal_number(self, method: RangeMethod) -> None:
        amax = 2e-36
        counts = np.zeros(2048, np.int64)
        counts[-1] = 9
        scale = np.float32(clipping_range(Histogram(counts, amax), method) / 127)
        assert scale >= np.finfo(np.float32).tiny

    def test_minmax_clips_nothing(self, values: NDArray[np.float32]) -> None:
        assert clipping_range(histogram(values), "minmax") == np.abs(values).max()

    @pytest.mark.parametrize(
        ("method", "percentile", "message"),
        [("max", 99.0, "method must be one of minmax, percentile"), ("minmax", 0.0, "above 0"), ("mse", 101.0, "100")],
    )
    def test_refuses_unknown_methods_and_percentiles(self, method: Any, percentile: float, message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            clipping_range(Histogram(np.array([1]), 1.0), method, percentile)


class TestHistogram:
    @pytest.mark.parametrize("amax", [-1.0, np.nan, np.inf])
    def test_refuses_an_invalid_magnitude(self, amax: float) -> None:
        with pytest.raises(InvalidInputError, match="amax"):
            Histogram(np.array([1]), amax)

    @pytest.mark.parametrize("counts", [[], [0, 0], [1, -1], [[1], [1]]])
    def test_refuses_invalid_counts(self, counts: list[Any]) -> None:
        with pytest.raises(InvalidInputError, match="counts"):
            Histogram(np.array(counts, np.int64), 1.0)


class TestPercentile:
    @pytest.mark.parametrize("percentile", [50.0, 99.0, 99.99, 100.0])
    def test_lies_within_a_bin_above_the_quantile(self, values: NDArray[np.float32], percentile: float) -> None:
        found = percentile_range(histogram(values), percentile)
        exact = np.quantile(np.abs(values), percentile / 100, method="inverted_cdf")
        width = np.abs(values).max() / 2048
        assert -1e-3 * width <= found - exact <= 1.001 * width

    @given(COUNTS, st.floats(1, 100), st.floats(1, 100))
    def test_grows_with_the_percentage(self, counts: NDArray[np.int64], one: float, other: float) -> None:
        found = Histogram(counts, 1.0)
        low, high = sorted((one, other))
        assert percentile_range(found, low) <= percentile_range(found, high)


class TestMse:
    def test_no_range_rounds_the_values_much_better(self, values: NDArray[np.float32]) -> None:
        amax = float(np.abs(values).max())
        found = squared_error(values, mse_range(histogram(values)))
        best = min(squared_error(values, amax * share) for share in np.linspace(0.002, 1, 500))
        # Ranges tried are 2.7 % apart, and values are taken to be spread evenly within a bin.
        assert found <= 1.03 * best + 1e-12 * amax**2

    def test_one_outlier_among_many_is_clipped(self, rng: np.random.Generator) -> None:
        found = mse_range(histogram(np.append(rng.normal(size=10**6), 100.0)))
        assert 4 < found < 60


class TestEntropy:
    @pytest.mark.parametrize("bins", [128, 129, 256, 300])
    def test_agrees_with_the_published_procedure_written_as_loops(self, bins: int, rng: np.random.Generator) -> None:
        for sample in (rng.laplace(size=5000), rng.standard_t(3, 5000), np.maximum(rng.normal(size=5000), 0)):
            found = histogram(sample, bins)
            counts = [float(count) for count in found.counts]
            counts[0] = counts[1]
            scores = [divergence_by_loops(counts, kept) for kept in range(128, bins + 1)]
            kept = 128 + int(np.argmin(scores))
            assert entropy_range(found) == pytest.approx(found.amax * min(1, (kept + 0.5) / bins))

    def test_zeros_behind_a_relu_do_not_matter(self, rng: np.random.Generator) -> None:
        sample = np.abs(rng.normal(size=100_000))
        padded = np.append(sample, np.zeros(10**6))
        assert entropy_range(histogram(padded)) == entropy_range(histogram(sample))

    def test_outliers_are_clipped_but_no_uniform_distribution(self, rng: np.random.Generator) -> None:
        assert entropy_range(histogram(np.append(rng.normal(size=100_000), 12.0))) < 6
        assert entropy_range(histogram(rng.uniform(-1, 1, 100_000))) > 0.95
