# SPDX-License-Identifier: Apache-2.0
"""Quantiles and ratios of raw series, with reproducible bootstrap intervals.

Dependent samples are resampled together, or the interval would be too narrow: all repetitions of an image if there are
enough images (cluster bootstrap), and consecutive requests if samples have no names (circular block bootstrap: D. N.
Politis and J. P. Romano, "A circular block-resampling procedure for stationary data", 1992).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.contract import InvalidInputError
from ocdserve.perf.series.measurement import Measurement, name_of_case

CONFIDENCE = 0.95

# With fewer samples nothing is significant at this confidence, even if all agree: a sign test of 5 pairs has
# p = 2 / 2**5 = 0.06.
_LEAST = 6
_RESAMPLES = 2000
# Numbers drawn at once.
_CHUNK = 2_000_000
_SEED = 0

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A statistic of a series with its confidence interval.

    Attributes:
        value: The statistic of all samples.
        low: Lower end of the 95 % interval; None for a single sample.
        high: Upper end.
        independent: Number of independent samples, images or blocks; fewer than six are not significant.
    """

    value: float
    low: float | None
    high: float | None
    independent: int

    @property
    def has_enough_samples(self) -> bool:
        """Whether there are enough independent samples for a significant statement."""
        return self.independent >= _LEAST

    def differs_from(self, value: float) -> bool:
        """Whether the difference from the value is significant: it lies outside of the interval of enough samples."""
        if self.low is None or self.high is None or not self.has_enough_samples:
            return False
        return not self.low <= value <= self.high


@dataclass(frozen=True)
class _Series:
    """Samples, the blocks that are resampled together, and the number of blocks per resampled series."""

    values: _Array
    blocks: tuple[NDArray[np.intp], ...]
    draws: int


def quantile(measurement: Measurement, fraction: float) -> float | None:
    """A quantile of the samples with linear interpolation.

    Returns:
        None if less than one sample is expected beyond it, so that it would be an extreme of the samples.
    """
    if fraction != 0.5 and len(measurement.samples) * min(fraction, 1 - fraction) < 1 - 1e-9:
        return None
    return float(np.quantile(measurement.samples, fraction))


def median(measurement: Measurement) -> Estimate:
    """The median of the samples, with its interval."""
    return _median(np.asarray(measurement.samples), measurement.cases)


def ratio(over: Measurement, under: Measurement, fraction: float = 0.5) -> Estimate:
    """The ratio of `over` to `under`.

    For the median of paired measurements the median of the ratios case by case, else the ratio of the two quantiles.

    Raises:
        InvalidInputError: The units differ, or `under` has a sample or a quantile of 0.
    """
    if over.unit != under.unit:
        raise InvalidInputError(f"a ratio needs one unit; got {over.unit!r} and {under.unit!r}")
    if fraction == 0.5 and is_paired(over, under):
        return _median(*_divided(over, under))
    numerator, denominator = (_series(np.asarray(one.samples), one.cases) for one in (over, under))
    if np.quantile(denominator.values, fraction) == 0:
        raise InvalidInputError(f"{under.subject!r} has a quantile of 0 in {under.group!r}, which divides nothing")
    generator = np.random.default_rng(_SEED)
    drawn = _drawn(numerator, fraction, generator) / _drawn(denominator, fraction, generator)
    value = float(np.quantile(numerator.values, fraction) / np.quantile(denominator.values, fraction))
    return _estimate(value, drawn, min(numerator.draws, denominator.draws))


def difference(of: Measurement, to: Measurement) -> Estimate:
    """The median of the differences between two paired series, case by case.

    Raises:
        InvalidInputError: The units differ, or the series were not made on the same cases.
    """
    return _median(_differences(of, to), of.cases)


def mean_difference(pairs: Sequence[tuple[Measurement, Measurement]]) -> Estimate:
    """The mean of the differences between paired series, case by case, each pair with the same weight.

    Args:
        pairs: At least one pair; the second series is subtracted from the first.

    Raises:
        InvalidInputError: There is no pair, or the series of one have no differences, as for `difference`.
    """
    if not pairs:
        raise InvalidInputError("the mean of differences needs at least one pair of series; got none")
    series = [_series(_differences(of, to), of.cases) for of, to in pairs]
    drawn = []
    for index, one in enumerate(series):
        # Pairs are independent of each other: each is drawn with numbers of its own.
        chunks = _chunks(one, np.random.default_rng((_SEED, index)))
        drawn.append(np.array([row.mean() for chunk in chunks for row in chunk]))
    means = [one.values.mean() for one in series]
    return _estimate(float(np.mean(means)), np.mean(drawn, axis=0), min(one.draws for one in series))


def relative(measurement: Measurement, yardstick: Measurement) -> Measurement:
    """Divide a series case by case by one measured in alternation with it, so that the machine's speed cancels.

    Raises:
        InvalidInputError: They were not made on the same cases, or the yardstick has a sample of 0.
    """
    if not is_paired(measurement, yardstick):
        raise InvalidInputError(
            f"{measurement.subject!r} and {yardstick.subject!r} were not measured on the same cases of "
            f"{measurement.group!r}; a yardstick must be measured in alternation"
        )
    values, cases = _divided(measurement, yardstick)
    return replace(measurement, samples=tuple(values.tolist()), cases=cases, baseline="")


def is_paired(a: Measurement, b: Measurement) -> bool:
    """Whether both have the same cases."""
    return bool(a.cases) and set(a.cases) == set(b.cases)


def _differences(of: Measurement, to: Measurement) -> _Array:
    if of.unit != to.unit or not is_paired(of, to):
        raise InvalidInputError(
            f"{of.subject!r} and {to.subject!r} have no differences: they need one unit and the same cases"
        )
    subtracted = to.by_case
    return np.array([value - subtracted[case] for case, value in of.by_case.items()])


def _divided(over: Measurement, under: Measurement) -> tuple[_Array, tuple[str, ...]]:
    divisors = under.by_case
    if not all(divisors.values()):
        raise InvalidInputError(f"{under.subject!r} has a sample of 0 in {under.group!r}, which divides nothing")
    return np.array([value / divisors[case] for case, value in over.by_case.items()]), over.cases


def _median(values: _Array, cases: Sequence[str]) -> Estimate:
    series = _series(values, cases)
    return _estimate(float(np.median(values)), _drawn(series, 0.5, np.random.default_rng(_SEED)), series.draws)


def _series(values: _Array, cases: Sequence[str]) -> _Series:
    if not cases:
        # Block length of the optimal order, the cube root of the number of samples.
        length = max(1, round(len(values) ** (1 / 3)))
        blocks = tuple((start + np.arange(length)) % len(values) for start in range(len(values)))
        return _Series(values, blocks, -(-len(values) // length))
    names: dict[str, list[int]] = {}
    for index, case in enumerate(cases):
        names.setdefault(name_of_case(case), []).append(index)
    if len(names) >= _LEAST:
        return _Series(values, tuple(np.array(indices) for indices in names.values()), len(names))
    return _Series(values, tuple(np.array([index]) for index in range(len(values))), len(values))


def _drawn(series: _Series, fraction: float, generator: np.random.Generator) -> _Array:
    """The quantiles of `_RESAMPLES` series drawn with replacement."""
    return np.concatenate([_quantiles(chunk, fraction) for chunk in _chunks(series, generator)])


def _quantiles(rows: Sequence[_Array] | _Array, fraction: float) -> _Array:
    if isinstance(rows, np.ndarray):
        return np.asarray(np.quantile(rows, fraction, axis=1))
    return np.array([np.quantile(row, fraction) for row in rows])


def _chunks(series: _Series, generator: np.random.Generator) -> Iterator[Any]:
    """Resampled series; rows of an array if all blocks have one length."""
    blocks = series.blocks
    rows = max(1, _CHUNK // len(series.values))
    is_even = len({len(block) for block in blocks}) == 1
    members = series.values[np.stack(blocks)] if is_even else None
    for first in range(0, _RESAMPLES, rows):
        chosen = generator.integers(len(blocks), size=(min(rows, _RESAMPLES - first), series.draws))
        if members is not None:
            yield members[chosen].reshape(len(chosen), -1)
        else:
            yield [series.values[np.concatenate([blocks[index] for index in row])] for row in chosen]


def _estimate(value: float, drawn: _Array, independent: int) -> Estimate:
    if independent < 2:
        return Estimate(value, None, None, independent)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    # Rounding may put an end on the wrong side of the value if all draws are equal.
    return Estimate(value, min(float(low), value), max(float(high), value), independent)
