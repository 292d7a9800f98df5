# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from ocdserve.backend.evaluation.figures import Counts
from ocdserve.builder.accuracy.interval import agreement_interval, hmean_loss_interval, poisson_interval


class TestPoisson:
    # Exact limits: Garwood, "Fiducial limits for the Poisson distribution", 1936.
    @pytest.mark.parametrize(
        ("count", "low", "high"),
        [(0, 0.0, 3.689), (1, 0.025, 5.572), (2, 0.242, 7.225), (5, 1.623, 11.668), (10, 4.795, 18.390)],
    )
    def test_is_near_the_exact_limits(self, count: int, low: float, high: float) -> None:
        assert poisson_interval(count) == (pytest.approx(low, abs=0.03), pytest.approx(high, abs=0.03))


class TestHmeanLoss:
    def test_losses_that_cancel_are_not_certain(self) -> None:
        # Seven pictures with ten texts each: two lose one, two win one.
        fp32 = [Counts(8, 10, 10)] * 7
        candidate = [Counts(8 + change, 10, 10) for change in (1, 1, -1, -1, 0, 0, 0)]
        low, high = hmean_loss_interval(fp32, candidate, 2, 2)
        # Limits of 0.242 to 7.225 for a count of 2: sqrt(5.225**2 + 1.758**2) = 5.51 matches of 200 / 140 points.
        assert (low, high) == (pytest.approx(-7.88, abs=0.05), pytest.approx(7.88, abs=0.05))

    def test_nothing_lost_of_few_texts_may_still_be_a_loss(self) -> None:
        fp32 = [Counts(5, 10, 10)] * 50
        # 3.689 matches of 200 / 1000 points.
        assert hmean_loss_interval(fp32, fp32, 0, 0) == (
            pytest.approx(-0.738, abs=0.01),
            pytest.approx(0.738, abs=0.01),
        )

    def test_one_image_says_nothing_of_others(self) -> None:
        assert hmean_loss_interval([Counts(900, 1000, 1000)], [Counts(900, 1000, 1000)], 0, 0) == (-100.0, 100.0)

    def test_losses_in_few_images_widen_it(self) -> None:
        fp32 = [Counts(50, 50, 50)] * 20
        spread = [Counts(49, 50, 50)] * 20
        together = [Counts(30, 50, 50)] + [Counts(50, 50, 50)] * 19
        narrow, wide = (hmean_loss_interval(fp32, found, 20, 0) for found in (spread, together))
        assert wide[1] > narrow[1] + 1

    @pytest.mark.parametrize("images", [8, 40])
    def test_covers_the_true_loss(self, images: int) -> None:
        """Pictures of 5 to 40 texts; in a quarter of them the candidate loses a tenth of the matches, in all it loses
        and wins a few."""
        random = np.random.default_rng(11)
        covered = 0
        for _ in range(100):
            fp32, candidate, lost, won = [], [], 0, 0
            for _ in range(images):
                texts = int(random.integers(5, 41))
                found = int(random.binomial(texts, 0.9))
                away = int(random.binomial(found, 0.1 if random.random() < 0.25 else 0.005))
                more = int(random.binomial(texts - found, 0.05))
                fp32.append(Counts(found, texts, texts))
                candidate.append(Counts(found - away + more, texts, texts))
                lost, won = lost + away, won + more
            low, high = hmean_loss_interval(fp32, candidate, lost, won)
            # Of 100 texts 90 are found; 90 * (0.25 * 0.1 + 0.75 * 0.005) are lost, 10 * 0.05 won.
            covered += low <= 2.0875 <= high
        assert covered >= 0.92 * 100


class TestAgreement:
    def test_equal_boxes(self) -> None:
        # 3.689 of 1000 boxes.
        assert agreement_interval([Counts(10, 10, 10)] * 50) == (pytest.approx(0.99631, abs=5e-5), 1.0)

    def test_one_image_or_no_box_says_nothing(self) -> None:
        assert agreement_interval([Counts(9, 10, 10)]) == (0.0, 1.0)
        assert agreement_interval([Counts()] * 50) == (0.0, 1.0)
