# SPDX-License-Identifier: Apache-2.0
"""Ranges of symmetric 8-bit quantisation, from a histogram of magnitudes.

A range `c` means levels c / 127 apart from -c to c; values beyond are clipped. `minmax` clips nothing; the other
methods trade clipped extremes for finer levels. Scaling a tensor scales its range by the same factor.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ocdserve.contract import InvalidInputError, not_one_of

RangeMethod = Literal["minmax", "percentile", "mse", "entropy"]

# Levels on either side of zero; -128 is unused, so that ranges are symmetric.
LEVELS = 127
# As in TensorRT's calibrators.
BINS = 2048

# Range of a tensor that is zero everywhere; any positive one is exact.
ZERO_RANGE = 1.0
# Below this the float32 scale is subnormal; such a tensor is treated as zero.
_SMALLEST_RANGE = LEVELS * float(np.finfo(np.float32).tiny)

# Levels of the quantised distribution in the entropy method: 128 magnitudes of a signed 8-bit number.
_ENTROPY_LEVELS = 128
# Ranges tried by the MSE method, 2.7 % apart, down to a 1024th of the largest magnitude.
_MSE_CANDIDATES = np.append(np.geomspace(1 / 1024, 1, 256)[:-1], 1.0)


@dataclass(frozen=True, eq=False)
class Histogram:
    """Histogram of magnitudes.

    Attributes:
        counts: int64 (bins,): number of values in each of the bins of equal width from 0 to `amax`.
        amax: Largest magnitude; 0 for a tensor that is zero everywhere.

    Raises:
        InvalidInputError: A count or `amax` is negative or not finite, or there are no values.
    """

    counts: NDArray[np.int64]
    amax: float

    def __post_init__(self) -> None:
        if not (np.isfinite(self.amax) and self.amax >= 0):
            raise InvalidInputError(f"amax must be a finite number of at least 0; got {self.amax!r}")
        if self.counts.ndim != 1 or not len(self.counts) or self.counts.min() < 0 or not self.counts.any():
            raise InvalidInputError("counts must be (bins,), none negative and not all 0: there are no values")


def magnitude_counts(values: NDArray[np.float32], amax: float, bins: int = BINS) -> NDArray[np.int64]:
    """Counts of a histogram of magnitudes; those of several arrays may be added.

    Args:
        values: float32, any shape, finite.
        amax: Upper end of the last bin; larger magnitudes are counted there.
        bins: Number of bins.

    Returns:
        int64 (bins,).
    """
    if amax == 0:
        counts = np.zeros(bins, np.int64)
        counts[0] = values.size
        return counts
    # Divide first: `bins / amax` overflows for a subnormal amax. In place: this is bound by memory.
    places = np.abs(values.reshape(-1))
    places /= np.float32(amax)
    places *= np.float32(bins)
    indices = places.astype(np.intp)
    np.minimum(indices, bins - 1, out=indices)
    return np.bincount(indices, minlength=bins)


def clipping_range(histogram: Histogram, method: RangeMethod, percentile: float = 99.999) -> float:
    """Range of a tensor, in (0, amax]; ZERO_RANGE if it is zero everywhere.

    Args:
        histogram: Magnitudes of the tensor over all calibration images.
        method: How the range is chosen; see the functions below.
        percentile: For the method of that name.

    Raises:
        InvalidInputError: The method or the percentile is not valid.
    """
    check_method(method, percentile)
    if histogram.amax < _SMALLEST_RANGE:
        return ZERO_RANGE
    if method == "minmax":
        return histogram.amax
    if method == "percentile":
        return percentile_range(histogram, percentile)
    return mse_range(histogram) if method == "mse" else entropy_range(histogram)


def check_method(method: str, percentile: float) -> None:
    """Raise InvalidInputError for an unknown method or a percentile outside (0, 100]."""
    if method not in get_args(RangeMethod):
        raise not_one_of("method", method, get_args(RangeMethod))
    if not 0 < percentile <= 100:
        raise InvalidInputError(f"percentile must be above 0 and at most 100; got {percentile!r}")


def percentile_range(histogram: Histogram, percentile: float) -> float:
    """Upper edge of the bin that holds the percentile of all values, zeros included."""
    reached = np.cumsum(histogram.counts)
    last = int(np.searchsorted(reached, percentile / 100 * reached[-1]))
    return histogram.amax * ((last + 1) / len(histogram.counts))


def mse_range(histogram: Histogram) -> float:
    """The range with the smallest mean squared error of rounding and clipping.

    Values are assumed to be uniform within a bin; then the error of each bin is an integral in closed form.
    """
    edges = np.linspace(0, 1, len(histogram.counts) + 1)
    errors = np.diff(_error_integral(edges, _MSE_CANDIDATES[:, None]), axis=1) @ histogram.counts
    return histogram.amax * float(_MSE_CANDIDATES[np.argmin(errors)])


def _error_integral(ends: NDArray[np.float64], ranges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared error integrated over the magnitudes from 0 to each end; shapes broadcast."""
    step = ranges / LEVELS
    inside = np.minimum(ends, ranges)
    level = np.rint(inside / step)
    # An interval that is rounded to one level contributes step^3 / 12.
    rounding = level * step**3 / 12 + (inside - level * step) ** 3 / 3
    clipping = (ends - inside) ** 3 / 3
    return np.asarray(rounding + clipping)


def entropy_range(histogram: Histogram) -> float:
    """The range with the smallest Kullback-Leibler divergence between the clipped and the quantised distribution.

    Algorithm: S. Migacz, "8-bit inference with TensorRT", GPU Technology Conference 2017. For each number of bins from
    128 on, the counts beyond are added to the last bin (clipping), the same bins without them are merged into 128
    levels, and each level's count is distributed over its bins that are not empty. As in NVIDIA's
    pytorch-quantization the first bin takes the count of the second: zeros after a ReLU are exact for any range, and
    would dominate.

    Shares of counts are compared, not errors, so peaks as from flat backgrounds can mislead it: on the default network
    it clipped up to a quarter of a tensor's values, with 90 times the map error of `minmax`.
    """
    counts = histogram.counts.astype(np.float64)
    bins = len(counts)
    counts[0] = counts[min(1, bins - 1)]
    beyond = counts.sum() - np.cumsum(counts)
    best, smallest = bins, np.inf
    for kept in range(min(_ENTROPY_LEVELS, bins), bins + 1):
        divergence = _divergence(counts[:kept], beyond[kept - 1])
        if divergence < smallest:
            best, smallest = kept, divergence
    # The threshold is half a bin beyond the last one.
    return histogram.amax * min(1.0, (best + 0.5) / bins)


def _divergence(counts: NDArray[np.float64], beyond: float) -> float:
    """Divergence of the bins with `beyond` added to the last from the merged bins; inf if a bin vanishes."""
    filled = counts > 0
    if not filled.any() or (beyond and not filled[-1]):
        return np.inf
    level = np.arange(len(counts)) * _ENTROPY_LEVELS // len(counts)
    shares = np.bincount(level, counts, _ENTROPY_LEVELS) / np.maximum(np.bincount(level, filled, _ENTROPY_LEVELS), 1)
    merged = shares[level][filled]
    clipped = counts[filled]
    clipped[-1] += beyond
    total = clipped.sum()
    # Both divided by their sums; the merged counts sum to all without `beyond`.
    return float(clipped @ np.log(clipped / merged) / total + np.log((total - beyond) / total))
