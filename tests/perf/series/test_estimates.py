# SPDX-License-Identifier: Apache-2.0
"""Medians, quantiles and ratios of hand-computed series, and of random ones with a known distribution."""

from dataclasses import replace

import numpy as np
import pytest

from ocdserve.contract import InvalidInputError
from ocdserve.perf.series.estimates import Estimate, difference, mean_difference, median, quantile, ratio, relative
from ocdserve.perf.series.measurement import Measurement, case_of

IMAGES = tuple(case_of(name, 0) for name in "abcdefgh")


def series(samples: "tuple[float, ...] | list[float]", cases: tuple[str, ...] = (), subject: str = "x") -> Measurement:
    return Measurement("section", subject, "group", "ms", tuple(samples), cases)


def width(estimate: Estimate) -> float:
    assert estimate.low is not None and estimate.high is not None
    return estimate.high - estimate.low


def test_quantiles_are_interpolated_linearly() -> None:
    hundred = series([float(value) for value in range(101)])
    assert (quantile(hundred, 0.5), quantile(hundred, 0.95), quantile(hundred, 0.99)) == (50, 95, 99)
    assert quantile(series([1.0, 2.0]), 0.5) == 1.5


def test_a_quantile_beyond_the_samples_is_not_estimated() -> None:
    assert quantile(series([1.0] * 99), 0.99) is None
    assert quantile(series([1.0] * 100), 0.99) == 1
    assert quantile(series([1.0] * 19), 0.95) is None
    assert quantile(series([1.0] * 20), 0.95) == 1


def test_the_interval_of_a_median_is_that_of_its_order_statistics() -> None:
    # The rank of the median of 100 draws from 100 lies within 50 +- 1.96 * sqrt(100) / 2 in 95 % of cases.
    values = [float(value) for value in range(1, 101)]
    estimate = median(series(values, tuple(case_of(str(value), 0) for value in values)))
    assert estimate.value == 50.5
    assert estimate.low == pytest.approx(50.5 - 9.8, abs=1.5)
    assert estimate.high == pytest.approx(50.5 + 9.8, abs=1.5)
    assert estimate.independent == 100


def test_the_coverage_of_the_interval_is_about_nominal() -> None:
    random = np.random.default_rng(5)
    cases = tuple(case_of(str(number), 0) for number in range(30))
    estimates = [median(series(list(random.lognormal(3.0, 0.5, 30)), cases)) for _ in range(200)]
    held = np.mean([(estimate.low or 0) <= np.exp(3.0) <= (estimate.high or 0) for estimate in estimates])
    # Three standard errors around 95 %.
    assert 0.90 <= held <= 0.997


def test_the_same_samples_give_the_same_interval() -> None:
    assert median(series([3.0, 1.0, 2.0, 5.0])) == median(series([3.0, 1.0, 2.0, 5.0]))


def test_repetitions_of_an_image_do_not_narrow_the_interval() -> None:
    values = [float(value) for value in (3, 9, 4, 8, 1, 7, 2, 6)]
    once = median(series(values, IMAGES))
    names = [name_case.partition("#")[0] for name_case in IMAGES]
    often = median(
        series(
            [value for value in values for _ in range(25)],
            tuple(case_of(name, repetition) for name in names for repetition in range(25)),
        )
    )
    assert often.independent == once.independent == 8
    assert width(often) > 0.8 * width(once)


def test_images_with_unequal_numbers_of_repetitions_are_resampled_whole() -> None:
    cases = tuple(case_of(name, repetition) for name in "abcdef" for repetition in range(1 + ord(name) % 3))
    estimate = median(series([float(ord(case[0])) for case in cases], cases))
    assert estimate.independent == 6
    assert {estimate.low, estimate.high} <= {float(ord(name)) for name in "abcdef"}


def test_correlated_requests_widen_the_interval() -> None:
    random = np.random.default_rng(3)
    steps = random.normal(0, 1, 1000)
    slow = [0.0]
    for step in steps:
        slow.append(0.9 * slow[-1] + step)
    values = [100 + value for value in slow[1:]]
    shuffled = list(random.permutation(values))
    assert width(median(series(values))) > 1.5 * width(median(series(shuffled)))


def test_a_single_sample_has_no_interval_and_is_not_significant() -> None:
    assert median(series([7.0])) == Estimate(7.0, None, None, 1)
    assert not median(series([7.0])).differs_from(1.0)


def test_a_ratio_is_the_median_of_pairs_and_not_of_medians() -> None:
    # The pairs give 3, 2 and 4; the medians 60 / 15 would give 4. The order of measurement does not matter.
    slow = series([30.0, 200.0, 60.0], ("a#0", "b#0", "a#1"), "slow")
    fast = series([15.0, 10.0, 100.0], ("a#1", "a#0", "b#0"), "fast")
    assert ratio(slow, fast).value == 3.0


def test_a_difference_is_the_median_of_pairs() -> None:
    # The pairs give 20, 100 and 45.
    slow = series([30.0, 200.0, 60.0], ("a#0", "b#0", "a#1"), "slow")
    fast = series([15.0, 10.0, 100.0], ("a#1", "a#0", "b#0"), "fast")
    assert difference(slow, fast).value == 45.0
    with pytest.raises(InvalidInputError, match="'slow' and 'x' have no differences"):
        difference(slow, series([1.0]))


def test_without_pairs_a_ratio_is_that_of_the_quantiles() -> None:
    slow = series([10.0 + value for value in range(101)])
    fast = series([5.0 + 0.5 * value for value in range(101)])
    assert ratio(slow, fast).value == 2.0
    assert ratio(slow, fast, 0.99).value == pytest.approx(2.0)
    assert ratio(slow, series([20.0] * 50)).value == 3.0


def test_a_constant_factor_is_significant_and_noise_is_not() -> None:
    random = np.random.default_rng(11)
    cases = tuple(case_of(str(number), 0) for number in range(40))
    base = random.lognormal(3, 0.6, 40)
    plain = series(list(base * random.normal(1, 0.05, 40)), cases)
    same = series(list(base * random.normal(1, 0.05, 40)), cases)
    slower = series(list(1.1 * base * random.normal(1, 0.05, 40)), cases)
    assert not ratio(same, plain).differs_from(1.0)
    assert ratio(slower, plain).differs_from(1.0)


@pytest.mark.parametrize(("count", "significant"), [(5, False), (6, True)])
def test_fewer_than_six_pairs_are_never_significant(count: int, significant: bool) -> None:
    cases = IMAGES[:count]
    assert ratio(series([20.0] * count, cases), series([10.0] * count, cases)).differs_from(1.0) is significant


def test_ratios_of_different_units_or_to_nothing_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="a ratio needs one unit; got 'MiB' and 'ms'"):
        ratio(replace(series([1.0]), unit="MiB"), series([1.0]))
    with pytest.raises(InvalidInputError, match="'x' has a sample of 0 in 'group'"):
        ratio(series([1.0, 2.0], ("a", "b")), series([0.0, 1.0], ("a", "b")))
    with pytest.raises(InvalidInputError, match="'x' has a quantile of 0 in 'group'"):
        ratio(series([1.0]), series([0.0]))


def test_a_yardstick_cancels_the_speed_of_the_machine() -> None:
    ours = series([10.0, 30.0], ("a#0", "b#0"), "ours")
    other = series([60.0, 40.0], ("b#0", "a#0"), "other")
    assert relative(ours, other).by_case == {"a#0": 0.25, "b#0": 0.5}


def test_a_yardstick_of_other_cases_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="'ours' and 'other' were not measured on the same cases of 'group'"):
        relative(series([1.0], ("a#0",), "ours"), series([1.0], ("b#0",), "other"))


def test_the_mean_of_differences_has_the_interval_of_normal_theory() -> None:
    random = np.random.default_rng(1)
    pages = tuple(case_of(f"page {index}", 0) for index in range(400))
    ours, theirs = series(random.normal(5, 1, 400).tolist(), pages), series(random.normal(5.3, 1, 400).tolist(), pages)
    differences = np.array(theirs.samples) - np.array(ours.samples)
    found = mean_difference([(theirs, ours)])
    assert found.value == pytest.approx(differences.mean())
    # 2 * 1.96 standard errors of the mean.
    assert width(found) == pytest.approx(3.92 * differences.std() / 20, rel=0.06)


def test_each_pair_has_the_same_weight_and_independent_errors_average_out() -> None:
    values = [0.0, 0.2] * 8
    few, many = (tuple(case_of(f"{name} {index}", 0) for index in range(16)) for name in ("few", "many"))
    pairs = [(series(values, few), series([0.0] * 16, few)), (series([0.4] * 16, many), series([0.0] * 16, many))]
    assert mean_difference(pairs).value == pytest.approx(0.25)
    assert mean_difference(pairs[:1]).value == pytest.approx(0.1)
    assert width(mean_difference(pairs)) == pytest.approx(width(mean_difference(pairs[:1])) / 2, rel=0.02)
    assert width(mean_difference([pairs[0]] * 4)) == pytest.approx(width(mean_difference(pairs[:1])) / 2, rel=0.1)


def test_the_mean_of_differences_needs_paired_series() -> None:
    with pytest.raises(InvalidInputError, match="needs at least one pair of series; got none"):
        mean_difference([])
    with pytest.raises(InvalidInputError, match="they need one unit and the same cases"):
        mean_difference([(series([1.0, 2.0], IMAGES[:2]), series([1.0, 2.0], IMAGES[2:4]))])
