# SPDX-License-Identifier: Apache-2.0
import pytest

from ocdserve.backend.evaluation.figures import Counts, total


class TestCounts:
    def test_figures_follow_from_the_sums_over_all_images(self) -> None:
        assert total([Counts(1, 2, 4), Counts(2, 2, 2)]).to_dict() == {
            "precision": 0.75,
            "recall": 0.5,
            "hmean": pytest.approx(0.6),
            "matched": 3,
            "detections": 4,
            "truths": 6,
        }

    @pytest.mark.parametrize("images", [(), (Counts(),), (Counts(0, 5, 0),), (Counts(0, 0, 5),), (Counts(0, 5, 5),)])
    def test_without_matches_all_figures_are_zero(self, images: tuple[Counts, ...]) -> None:
        counts = total(images)
        assert (counts.precision, counts.recall, counts.hmean, counts.tao_hmean) == (0, 0, 0, 0)

    def test_tao_s_hmean_has_an_epsilon_in_the_denominator(self) -> None:
        counts = total([Counts(3, 4, 6), Counts(0, 1, 0), Counts(1, 1, 2)])
        assert (counts.precision, counts.recall) == (4 / 6, 4 / 8)
        assert counts.hmean == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))
        assert counts.tao_hmean == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5 + 1e-8), abs=1e-15)
