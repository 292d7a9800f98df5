# SPDX-License-Identifier: Apache-2.0
"""The gate on reading: a recogniser of lower precision is compared with its FP32 original on real lines."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ocdserve.backend.evaluation.reading import edit_distance, folded
from ocdserve.backend.recogniser import Recogniser
from ocdserve.builder.accuracy.gate import FEW_IMAGES, most_sensitive
from ocdserve.builder.accuracy.interval import Interval, loss_interval
from ocdserve.builder.progress import Progress
from ocdserve.builder.recogniser.lines import Page
from ocdserve.contract import InvalidInputError


@dataclass(frozen=True)
class ReadingLimits:
    """What a build may lose against FP32.

    Attributes:
        cer: Points (hundredths) of the character error rate; applies where transcriptions are known, like `exact`.
        exact: Points of the share of lines that read exactly as transcribed.
        agreement: Smallest share of lines that read exactly as in FP32, from 0 to 1; applies otherwise.

    Raises:
        InvalidInputError: A limit is out of its range.
    """

    cer: float
    exact: float
    agreement: float

    def __post_init__(self) -> None:
        for what, value in (("character error rate", self.cer), ("share of exact lines", self.exact)):
            if not 0 <= value <= 100:
                raise InvalidInputError(f"the limit of the {what}'s loss must be from 0 to 100 points; got {value}")
        if not 0 <= self.agreement <= 1:
            raise InvalidInputError(
                f"the limit of the share of lines that read as in FP32 must be from 0 to 1; got {self.agreement}"
            )


@dataclass(frozen=True)
class ReadingReference:
    """What FP32 reads, for comparison with any number of candidates.

    Attributes:
        pages: The lines, and their transcriptions where known.
        texts: What FP32 reads, by page and line.
        scores: Score of each, 0 to 1.
    """

    pages: tuple[Page, ...]
    texts: tuple[tuple[str, ...], ...]
    scores: tuple[tuple[float, ...], ...]

    def first(self, count: int) -> "ReadingReference":
        """The reference on the first `count` pages only."""
        return ReadingReference(self.pages[:count], self.texts[:count], self.scores[:count])


@dataclass(frozen=True)
class ReadingComparison:
    """A candidate compared with FP32 on the same lines.

    Rates against the transcriptions ignore case and runs of spaces, and are of the lines that have one; None without
    any.

    Attributes:
        images: Number of images.
        lines: Number of lines.
        agreement: Share of lines that read exactly as in FP32, 0 to 1.
        difference: Character error rate with FP32's texts as the truth, 0 to 1.
        score_error: Mean absolute difference of the lines' scores.
        transcribed: Number of lines with a transcription.
        cer: Character error rate of the candidate, 0 to 1, like the following.
        cer_fp32: Character error rate of FP32.
        exact: Share of lines that the candidate reads exactly.
        exact_fp32: Share of lines that FP32 reads exactly.
        lines_lost: Lines that only FP32 reads exactly; without transcriptions, those that read otherwise than in FP32.
        lines_won: Lines that only the candidate reads exactly.
        cer_loss_interval: 95 % interval of `cer_loss` on images like these, points.
        exact_loss_interval: The same of `exact_loss`.
        agreement_interval: The same of the agreement.
    """

    images: int
    lines: int
    agreement: float
    difference: float
    score_error: float
    transcribed: int
    cer: float | None
    cer_fp32: float | None
    exact: float | None
    exact_fp32: float | None
    lines_lost: int
    lines_won: int
    cer_loss_interval: Interval | None
    exact_loss_interval: Interval | None
    agreement_interval: Interval

    @property
    def cer_loss(self) -> float | None:
        """Points of the character error rate lost; negative if the candidate is better."""
        return None if self.cer is None or self.cer_fp32 is None else 100 * (self.cer - self.cer_fp32)

    @property
    def exact_loss(self) -> float | None:
        """Points of exact lines lost; negative if the candidate is better."""
        return None if self.exact is None or self.exact_fp32 is None else 100 * (self.exact_fp32 - self.exact)

    def _judged(self, limits: ReadingLimits) -> list[tuple[str, float, Interval, float]]:
        """What is judged: figure's name, loss in points, its interval, and its limit."""
        if self.cer_loss is None or self.exact_loss is None:
            low, high = self.agreement_interval
            most = 100 * (1 - limits.agreement)
            return [
                ("lines that read as in FP32", 100 * (1 - self.agreement), (100 - 100 * high, 100 - 100 * low), most)
            ]
        cer, exact = self.cer_loss_interval or (-100.0, 100.0), self.exact_loss_interval or (-100.0, 100.0)
        return [
            ("character error rate", self.cer_loss, cer, limits.cer),
            ("exact lines", self.exact_loss, exact, limits.exact),
        ]

    def passes(self, limits: ReadingLimits) -> bool:
        """Whether the candidate stays within the limits on these images."""
        # Tolerates the last digits of a loss that equals the limit.
        return all(loss <= most + 1e-9 for _, loss, _, most in self._judged(limits))

    def is_certain(self, limits: ReadingLimits) -> bool:
        """Whether the whole 95 % intervals are on the same side of the limits as the figures themselves."""
        judged = self._judged(limits)
        fails = any(low > most + 1e-9 for _, _, (low, _), most in judged)
        return fails or all(high <= most + 1e-9 for _, _, (_, high), most in judged)

    def rule(self, limits: ReadingLimits) -> str:
        """What the limits demand, in words."""
        if self.cer_loss is not None:
            return f"it may lose {limits.cer:g} points of character error rate and {limits.exact:g} of exact lines"
        return f"at least {limits.agreement:.1%} of the lines must read as in FP32"

    def warnings(self, limits: ReadingLimits) -> list[str]:
        """What the images cannot tell, one sentence each."""
        found = []
        if not self.is_certain(limits):
            what = "; ".join(
                f"{name} {low:.2f} to {high:.2f} points lost (95 %), the limit is {most:g}"
                for name, _, (low, high), most in self._judged(limits)
            )
            found.append(f"the gate cannot tell with these images whether the limit holds: {what}")
        if not self.lines:
            found.append("there are no lines on the judged images, which therefore say nothing; judge with others")
        elif not self.transcribed:
            found.append("the judged images have no transcriptions: what is read was compared with FP32 only")
        if self.images < FEW_IMAGES:
            found.append(f"only {self.images} images were judged; fewer than {FEW_IMAGES} say little about others")
        return found

    def to_dict(self) -> dict[str, Any]:
        """All figures, JSON-serialisable."""
        return {**asdict(self), "cer_loss": self.cer_loss, "exact_loss": self.exact_loss}

    def table(self) -> str:
        """The figures as text, one per line."""
        rows = [("images", str(self.images)), ("lines", str(self.lines))]
        if self.cer_loss is not None and self.exact_loss is not None:
            rows += [
                ("CER FP32", f"{self.cer_fp32:.4f}"),
                ("CER", f"{self.cer:.4f}"),
                ("exact lines FP32", f"{self.exact_fp32:.4f}"),
                ("exact lines", f"{self.exact:.4f}"),
            ]
        for name, interval in (("CER lost, 95 %", self.cer_loss_interval), ("exact, 95 %", self.exact_loss_interval)):
            if interval is not None:
                rows.append((name, "{:.2f} to {:.2f}".format(*interval)))
        rows += [
            ("lines lost / won", f"{self.lines_lost} / {self.lines_won}"),
            ("as in FP32", f"{self.agreement:.4f}"),
            ("as in FP32, 95 %", "{:.4f} to {:.4f}".format(*self.agreement_interval)),
            ("CER against FP32", f"{self.difference:.4f}"),
        ]
        return "\n".join(f"  {label:<20}{value:>16}" for label, value in rows)


def make_reading_reference(recogniser: Recogniser, pages: Sequence[Page], progress: Progress) -> ReadingReference:
    """Read the lines of the evaluation images in FP32."""
    texts, scores = _read(recogniser, pages, progress, "FP32 on the evaluation images")
    return ReadingReference(tuple(pages), texts, scores)


def compare_reading(
    reference: ReadingReference, recogniser: Recogniser, progress: Progress, label: str = "gate on reading"
) -> ReadingComparison:
    """Read the reference's lines with a candidate.

    Args:
        reference: From `make_reading_reference`.
        recogniser: The candidate.
        progress: Reports each image.
        label: Name of the task.
    """
    texts, scores = _read(recogniser, reference.pages, progress, label)
    changed = [_differences(ours, theirs) for ours, theirs in zip(texts, reference.texts, strict=True)]
    lines = [len(page.lines) for page in reference.pages]
    same = [count - sum(edits > 0 for edits in page) for count, page in zip(lines, changed, strict=True)]
    known = sum(len(text) for page in reference.texts for text in page)
    ours, theirs = np.concatenate([*map(np.array, scores), []]), np.concatenate([*map(np.array, reference.scores), []])
    total = sum(lines)
    return ReadingComparison(
        images=len(reference.pages),
        lines=total,
        agreement=sum(same) / total if total else 1.0,
        difference=sum(map(sum, changed)) / max(1, known),
        score_error=float(np.abs(ours - theirs).mean()) if total else 0.0,
        agreement_interval=_agreement_interval(same, lines),
        **_against_truth(reference, texts),
    )


def reading_refusal(
    precision: str, comparison: ReadingComparison, limits: ReadingLimits, sensitivity: Mapping[str, float]
) -> str:
    """Message of a recogniser that fails the gate: rule, figures, most sensitive layers and remedies.

    Args:
        precision: The network's precision.
        comparison: Its figures.
        limits: The limits that it exceeds.
        sensitivity: Score error of single layers by name, if measured.
    """
    warnings = "".join(f"\n{warning[0].upper()}{warning[1:]}." for warning in comparison.warnings(limits))
    return (
        f"the gate on reading refuses this {precision} network: {comparison.rule(limits)}.\n{comparison.table()}"
        f"{most_sensitive(sensitivity, 'score error')}{warnings}\n"
        "Nothing was written. Calibrate with more typical images, exclude layers (--keep), or relax the limits "
        "(--max-cer-loss, --max-exact-loss, --min-agreement)."
    )


def _against_truth(reference: ReadingReference, texts: tuple[tuple[str, ...], ...]) -> dict[str, Any]:
    """The fields of a comparison that are about the transcriptions."""
    # Per page: columns are characters, edits of FP32, edits here; and lines, exact in FP32, exact here.
    rows = []
    for page, theirs, ours in zip(reference.pages, reference.texts, texts, strict=True):
        known = [index for index, text in enumerate(page.texts) if text is not None]
        truth = [folded(page.texts[index] or "") for index in known]
        before = np.array(_differences([folded(theirs[index]) for index in known], truth), np.int64)
        after = np.array(_differences([folded(ours[index]) for index in known], truth), np.int64)
        worse = np.maximum(after - before, 0).sum(), np.maximum(before - after, 0).sum()
        lost, won = ((before == 0) & (after > 0)).sum(), ((before > 0) & (after == 0)).sum()
        counts = sum(map(len, truth)), before.sum(), after.sum(), *worse
        rows.append((*counts, len(known), (before == 0).sum(), (after == 0).sum(), lost, won))
    table = np.array(rows, np.int64).reshape(-1, 10)
    letters, edits_fp32, edits, _, _, lines, exact_fp32, exact, lost, won = table.sum(axis=0).tolist()
    if not lines:
        changed = sum(sum(map(str.__ne__, *pair)) for pair in zip(texts, reference.texts, strict=True))
        unknown = dict.fromkeys(("cer", "cer_fp32", "exact", "exact_fp32", "cer_loss_interval", "exact_loss_interval"))
        return {**unknown, "transcribed": 0, "lines_lost": changed, "lines_won": 0}
    return {
        "transcribed": lines,
        "cer": edits / max(1, letters),
        "cer_fp32": edits_fp32 / max(1, letters),
        "exact": exact / lines,
        "exact_fp32": exact_fp32 / lines,
        "lines_lost": lost,
        "lines_won": won,
        "cer_loss_interval": loss_interval(table[:, 3], table[:, 4], table[:, 0]),
        "exact_loss_interval": loss_interval(table[:, 8], table[:, 9], table[:, 5]),
    }


def _agreement_interval(same: Sequence[int], lines: Sequence[int]) -> Interval:
    counts = np.array(lines, np.int64)
    low, high = loss_interval(counts - np.array(same, np.int64), np.zeros_like(counts), counts)
    return max(0.0, 1 - high / 100), min(1.0, 1 - low / 100)


def _read(
    recogniser: Recogniser, pages: Sequence[Page], progress: Progress, label: str
) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[float, ...], ...]]:
    """Texts and scores by page and line, as served, without a second look at lines that may be upside down."""
    texts, scores = [], []
    with progress.task(label, len(pages)) as task:
        for page in pages:
            read = recogniser.read_lines(page.lines, direction=False)
            texts.append(tuple(each.text for each in read))
            scores.append(tuple(each.score for each in read))
            task.advance()
    return tuple(texts), tuple(scores)


def _differences(texts: Sequence[str], others: Sequence[str]) -> list[int]:
    return [edit_distance(text, other) for text, other in zip(texts, others, strict=True)]
