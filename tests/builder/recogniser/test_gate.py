# SPDX-License-Identifier: Apache-2.0
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.backend.spec.recogniser_spec import RecogniserSpec
from ocdserve.backend.stages.ctc import Steps
from ocdserve.builder import ReadingLimits
from ocdserve.builder.progress import SILENT
from ocdserve.builder.recogniser.gate import (
    ReadingComparison,
    compare_reading,
    make_reading_reference,
    reading_refusal,
)
from ocdserve.builder.recogniser.lines import Page, cut_pages
from ocdserve.builder.recogniser.trial import recogniser_of, whole_line
from ocdserve.contract import InvalidInputError

SPEC = RecogniserSpec(characters=tuple("abcdefgh T"))
BLANK_LINE = whole_line(np.zeros((48, 320, 3), np.uint8))


class Reads:
    """A network that reads these texts, one after the other."""

    def __init__(self, *texts: str, score: float = 0.9) -> None:
        self._texts = list(texts)
        self._score = score

    def infer(self, lines: Sequence[NDArray[np.uint8]]) -> list[Steps]:
        return [self._steps(self._texts.pop(0)) for _ in lines]

    def _steps(self, text: str) -> Steps:
        # A blank before every letter, for letters that are repeated.
        classes = [index for letter in text for index in (0, SPEC.characters.index(letter) + 1)]
        return Steps(np.array(classes, np.int32), np.full(len(classes), self._score, np.float32))


def page(*texts: str | None) -> Page:
    return Page((BLANK_LINE,) * len(texts), texts)


def compared(pages: list[Page], fp32: list[str], candidate: list[str]) -> ReadingComparison:
    reference = make_reading_reference(recogniser_of(SPEC, Reads(*fp32)), pages, SILENT)
    return compare_reading(reference, recogniser_of(SPEC, Reads(*candidate, score=0.8)), SILENT)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 2, 3, 0), (2, 1, 0, 3), (0, 3, 2, 1)])
def test_lines_are_upright_whatever_corner_a_label_begins_at(tmp_path: Path, order: tuple[int, ...]) -> None:
    pixels = np.zeros((80, 200, 3), np.uint8)
    # Its upper left quarter is white.
    pixels[10:34, 10:90] = 255
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    corners = np.array([(10, 10), (170, 10), (170, 58), (10, 58)], np.float64)[list(order)]
    ((line,),) = (page.lines for page in cut_pages({tmp_path / "a.png": Truth((corners,), (False,))}, SPEC, 1, SILENT))
    assert line.pixels.shape == (48, 160, 3)
    assert line.pixels[:20, :76].min() == 255 and line.pixels[28:].max() == line.pixels[:, 84:].max() == 0


class TestCompareReading:
    def test_against_the_transcriptions(self) -> None:
        pages = [page("abcd", "abcd ef"), page("gh", None)]
        found = compared(pages, ["abcd", "abcdef", "gh", "aa"], ["abTd", "abcd  ef", "ga", "ab"])
        # 4 + 7 + 2 characters; FP32 lacks a space, the candidate has two letters wrong and that space right.
        assert (found.images, found.lines, found.transcribed) == (2, 4, 3)
        assert (found.cer_fp32, found.cer) == (pytest.approx(1 / 13), pytest.approx(2 / 13))
        assert (found.exact_fp32, found.exact) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
        assert (found.lines_lost, found.lines_won) == (2, 1)
        assert found.cer_loss == pytest.approx(100 / 13)
        assert found.exact_loss == pytest.approx(100 / 3)
        # Of 4 + 6 + 2 + 2 characters five differ from FP32's: T, two spaces, a, b.
        assert found.difference == pytest.approx(5 / 14)
        assert found.agreement == 0
        assert found.score_error == pytest.approx(0.1, abs=1e-6)

    def test_case_and_runs_of_spaces_do_not_matter_to_the_truth(self) -> None:
        found = compared([page("ABC  d"), page("t")], ["abc d", "T"], ["abc  d", "T"])
        assert (found.cer, found.exact, found.cer_loss) == (0, 1, 0)
        assert found.agreement == 0.5

    def test_without_transcriptions_fp32_is_the_truth(self) -> None:
        found = compared([page(None, None), page(None, None)], ["ab", "cd", "ef", "gh"], ["ab", "cd", "ef", "gd"])
        assert (found.cer, found.exact_loss, found.transcribed) == (None, None, 0)
        assert (found.agreement, found.lines_lost) == (0.75, 1)
        assert found.passes(ReadingLimits(0, 0, 0.75))
        assert not found.passes(ReadingLimits(100, 100, 0.76))
        assert any("no transcriptions" in warning for warning in found.warnings(ReadingLimits(0, 0, 0.5)))

    def test_no_lines_say_nothing(self) -> None:
        found = compared([page()], [], [])
        assert (found.lines, found.agreement, found.cer) == (0, 1, None)
        assert any("no lines" in warning for warning in found.warnings(ReadingLimits(0, 0, 0.5)))


class TestLimits:
    def test_both_losses_are_limited(self) -> None:
        pages = [page(*["abcdefgh"] * 10), page(*["abcdefgh"] * 10)]
        found = compared(pages, ["abcdefgh"] * 20, ["abcdefg"] + ["abcdefgh"] * 19)
        # One character of 160, one line of 20.
        assert found.passes(ReadingLimits(0.625, 5, 1))
        assert not found.passes(ReadingLimits(0.62, 5, 1))
        assert not found.passes(ReadingLimits(0.625, 4.9, 1))

    def test_few_lines_are_not_certain(self) -> None:
        pages = [page(*["abcdefgh"] * 10) for _ in range(3)]
        found = compared(pages, ["abcdefgh"] * 30, ["abcdefgh"] * 30)
        assert found.passes(ReadingLimits(0.1, 0.5, 0.99))
        assert not found.is_certain(ReadingLimits(0.1, 0.5, 0.99))
        # None of 30 lines changed: up to 3.7 may (the upper limit of a Poisson count of 0).
        assert found.is_certain(ReadingLimits(10, 30, 0.8))
        assert found.exact_loss_interval == (pytest.approx(-12.3, abs=0.1), pytest.approx(12.3, abs=0.1))

    @pytest.mark.parametrize("values", [(-1, 0, 0), (0, 101, 0), (0, 0, 1.1)])
    def test_a_limit_out_of_range(self, values: tuple[float, float, float]) -> None:
        with pytest.raises(InvalidInputError, match="limit of the"):
            ReadingLimits(*values)

    def test_a_refusal_tells_rule_figures_and_remedies(self) -> None:
        found = compared([page("ab"), page("cd")], ["ab", "cd"], ["ab", "ch"])
        text = reading_refusal("int8", found, ReadingLimits(0.5, 1, 0.95), {"Conv.1": 0.25, "Conv.2": 0.5})
        assert "refuses this int8 network: it may lose 0.5 points of character error rate and 1 of exact lines" in text
        assert "lines lost / won               1 / 0" in text
        assert text.index("Conv.2") < text.index("Conv.1")
        assert "--max-cer-loss" in text and "--keep" in text
