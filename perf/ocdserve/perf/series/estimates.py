# SPDX-License-Identifier: Apache-2.0
"""Quantiles and ratios of raw series, with bootstrap intervals that come out the same each time.

Samples that are not independent are drawn together, or the interval would be too narrow: all repetitions of an image
where there are enough images (cluster bootstrap), and requests that follow each other where samples have no names
(circular block bootstrap: D. N. Politis and J. P. Romano, "A circular block-resampling procedure for stationary data",
1992).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.contract import InvalidInputError
from ocdserve.perf.series.measurement import Measurement, name_of_case

__all__ = ["CONFIDENCE", "Estimate", "difference", "is_paired", "median", "quantile", "ratio", "relative"]

CONFIDENCE = 0.95

# With fewer, not even a difference that all of them show is significant at this confidence: a sign test of 5 pairs
# gives 2 / 2**5 = 0.06.
_LEAST = 6
_RESAMPLES = 2000
# Numbers that are drawn at once.
_CHUNK = 2_000_000
_SEED = 0

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A statistic of a series, and how sure it is.

    Attributes:
        value: The statistic of all samples.
        low: Lower end of the 95 % interval; None where there is but one sample.
        high: Upper end.
        independent: Samples, images or blocks that were drawn; fewer than six tell nothing significant.
    """

    value: float
    low: float | None
    high: float | None
    independent: int

    @property
    def is_telling(self) -> bool:
        """Whether the samples are enough to say anything."""
        return self.independent >= _LEAST

    def differs_from(self, value: float) -> bool:
        """Whether the value lies outside of the interval, and the samples are enough to say so."""
        if self.low is None or self.high is None or not self.is_telling:
            return False
        return not self.low <= value <= self.high


@dataclass(frozen=True)
class _Series:
    """Samples, which of them are drawn together, and how many such blocks make up a drawn series."""

    values: _Array
    blocks: tuple[NDArray[np.intp], ...]
    draws: int


def quantile(measurement: Measurement, fraction: float) -> float | None:
    """A quantile of the samples, linear between neighbours.

    Returns:
        None where not even one sample is expected to lie beyond it, so that it would be the largest or smallest sample.
    """
    if fraction != 0.5 and len(measurement.samples) * min(fraction, 1 - fraction) < 1 - 1e-9:
        return None
    return float(np.quantile(measurement.samples, fraction))


def median(measurement: Measurement) -> Estimate:
    """The median of the samples, with its interval."""
    series = _series(np.asarray(measurement.samples), measurement.cases)
    drawn = _drawn(series, 0.5, np.random.default_rng(_SEED))
    return _estimate(float(np.median(series.values)), drawn, series.draws)


def ratio(over: Measurement, under: Measurement, fraction: float = 0.5) -> Estimate:
    """How many times `under` the measurement `over` is.

    Where both were made on the same cases, and the median is asked for: the median of the ratios case by case. Else the
    ratio of the two quantiles.

    Raises:
        InvalidInputError: The units differ, or `under` has a sample, or a quantile, of 0.
    """
    if over.unit != under.unit:
        raise InvalidInputError(f"a ratio needs one unit; got {over.unit!r} and {under.unit!r}")
    if fraction == 0.5 and is_paired(over, under):
        series = _series(*_divided(over, under))
        drawn = _drawn(series, fraction, np.random.default_rng(_SEED))
        return _estimate(float(np.quantile(series.values, fraction)), drawn, series.draws)
    numerator, denominator = (_series(np.asarray(one.samples), one.cases) for one in (over, under))
    if np.quantile(denominator.values, fraction) == 0:
        raise InvalidInputError(f"{under.subject!r} has a quantile of 0 in {under.group!r}, which divides nothing")
    generator = np.random.default_rng(_SEED)
    drawn = _drawn(numerator, fraction, generator) / _drawn(denominator, fraction, generator)
    value = float(np.quantile(numerator.values, fraction) / np.quantile(denominator.values, fraction))
    return _estimate(value, drawn, min(numerator.draws, denominator.draws))


def difference(of: Measurement, to: Measurement) -> Estimate:
    """How much more one series is than another of the same cases: the median of the differences case by case.

    Raises:
        InvalidInputError: The units differ, or the series were not made on the same cases.
    """
    if of.unit != to.unit or not is_paired(of, to):
        raise InvalidInputError(
            f"{of.subject!r} and {to.subject!r} have no differences: they need one unit and the same cases"
        )
    subtracted = to.by_case
    series = _series(np.array([value - subtracted[case] for case, value in of.by_case.items()]), of.cases)
    drawn = _drawn(series, 0.5, np.random.default_rng(_SEED))
    return _estimate(float(np.median(series.values)), drawn, series.draws)


def relative(measurement: Measurement, yardstick: Measurement) -> Measurement:
    """The series divided case by case by one that was measured in turns with it, so that the machine's speed cancels.

    Raises:
        InvalidInputError: They were not made on the same cases, or the yardstick has a sample of 0.
    """
    if not is_paired(measurement, yardstick):
        raise InvalidInputError(
            f"{measurement.subject!r} and {yardstick.subject!r} were not measured on the same cases of "
            f"{measurement.group!r}; a yardstick must be measured in turns"
        )
    values, cases = _divided(measurement, yardstick)
    return Measurement(
        section=measurement.section,
        subject=measurement.subject,
        group=measurement.group,
        unit=measurement.unit,
        samples=tuple(values.tolist()),
        cases=cases,
        factors=measurement.factors,
        facts=measurement.facts,
    )


def is_paired(a: Measurement, b: Measurement) -> bool:
    """Whether both were made on the same cases."""
    return bool(a.cases) and set(a.cases) == set(b.cases)


def _divided(over: Measurement, under: Measurement) -> tuple[_Array, tuple[str, ...]]:
    divisors = under.by_case
    if not all(divisors.values()):
        raise InvalidInputError(f"{under.subject!r} has a sample of 0 in {under.group!r}, which divides nothing")
    return np.array([value / divisors[case] for case, value in over.by_case.items()]), over.cases


def _series(values: _Array, cases: Sequence[str]) -> _Series:
    if not cases:
        # The cube root of the length is the order that minimises the error of the interval.
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
    """The quantile of series drawn with replacement, `_RESAMPLES` times."""
    return np.concatenate([_quantiles(chunk, fraction) for chunk in _chunks(series, generator)])


def _quantiles(rows: Sequence[_Array] | _Array, fraction: float) -> _Array:
    if isinstance(rows, np.ndarray):
        return np.asarray(np.quantile(rows, fraction, axis=1))
    return np.array([np.quantile(row, fraction) for row in rows])


def _chunks(series: _Series, generator: np.random.Generator) -> Iterator[Any]:
    """Drawn series: as the rows of an array where all blocks are of one length."""
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
    # An end may pass the value by the last digit, where all draws are equal.
    return Estimate(value, min(float(low), value), max(float(high), value), independent)
