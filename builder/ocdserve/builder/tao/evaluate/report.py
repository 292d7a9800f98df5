# SPDX-License-Identifier: Apache-2.0
"""What an evaluation leaves behind: TAO's results.json, and report.json with all that it has found."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ocdserve.backend.evaluation.figures import Counts, total
from ocdserve.builder.tao.evaluate.measure import BITMAP_THRESHOLDS, SCORE_THRESHOLDS, ImageResult, Region
from ocdserve.builder.tao.inputs.pipeline import Unreadable

RESULTS_FILE = "results.json"
REPORT_FILE = "report.json"
WORST_FILE = "worst.png"


@dataclass(frozen=True)
class Outcome:
    """A finished evaluation.

    Attributes:
        images: In the order of the data set.
        unreadable: Images that could not be read; they are in none of the figures.
        notes: What was left out or is uncertain, a sentence each.
        seconds: From the first image to the last.
        tao: Whether TAO's rules hold.
        thresh: The bitmap threshold of the spec.
        box_thresh: The score threshold of the spec.
    """

    images: tuple[ImageResult, ...]
    unreadable: tuple[Unreadable, ...]
    notes: tuple[str, ...]
    seconds: float
    tao: bool
    thresh: float
    box_thresh: float

    @property
    def counts(self) -> Counts:
        """Over all images, at the spec's thresholds."""
        return total(image.counts for image in self.images)

    @property
    def images_per_second(self) -> float:
        """Images, unreadable ones too, by seconds."""
        return (len(self.images) + len(self.unreadable)) / max(self.seconds, 1e-9)

    def results(self) -> dict[str, float]:
        """Content of results.json, by TAO's names."""
        counts = self.counts
        return {"Precision": counts.precision, "Recall": counts.recall, "F-measure": self._hmean(counts)}

    def bitmap_sweep(self) -> list[dict[str, Any]]:
        """Figures at each threshold of the bitmap."""
        columns = zip(*(image.by_bitmap_threshold for image in self.images), strict=True)
        return [
            {"thresh": thresh, **self._figures(total(counts))}
            for thresh, counts in zip(BITMAP_THRESHOLDS, columns, strict=False)
        ]

    def score_sweep(self) -> list[dict[str, Any]]:
        """Figures of the detections that score at least so much, from the spec's box_thresh on."""
        columns = zip(*(image.by_score_threshold for image in self.images), strict=True)
        rows = [
            {"box_thresh": thresh, **self._figures(total(counts))}
            for thresh, counts in zip(SCORE_THRESHOLDS, columns, strict=False)
            if thresh > self.box_thresh
        ]
        return [{"box_thresh": self.box_thresh, **self._figures(self.counts)}, *rows]

    def summary(self) -> dict[str, Any]:
        """All of report.json but the images."""
        bitmap, score = self.bitmap_sweep(), self.score_sweep()
        return {
            "protocol": "tao" if self.tao else "icdar2015",
            "images": len(self.images),
            "images_per_second": round(self.images_per_second, 3),
            "seconds": round(self.seconds, 3),
            "fixed": {"thresh": self.thresh, "box_thresh": self.box_thresh, **self._figures(self.counts)},
            "swept": {
                "note": "chosen on these very images, so not comparable with the figures at fixed thresholds",
                "best_by_thresh": max(bitmap, key=lambda row: row["hmean"], default=None),
                "best_by_box_thresh": max(score, key=lambda row: row["hmean"], default=None),
                "by_thresh": bitmap,
                "by_box_thresh": score,
            },
            "unreadable": [{"image": str(image.path), "reason": image.reason} for image in self.unreadable],
            "notes": list(self.notes),
        }

    def _hmean(self, counts: Counts) -> float:
        return counts.tao_hmean if self.tao else counts.hmean

    def _figures(self, counts: Counts) -> dict[str, Any]:
        return {**counts.to_dict(), "hmean": self._hmean(counts)}


def write_results(outcome: Outcome, folder: Path, has_texts: bool = True) -> Path:
    """Write results.json, whose path is returned, and report.json.

    Args:
        outcome: What was found.
        folder: Where to.
        has_texts: Whether the report tells transcriptions.
    """
    results, report = folder / RESULTS_FILE, folder / REPORT_FILE
    results.write_text(json.dumps(outcome.results()), "utf-8")
    head = json.dumps(outcome.summary(), indent=2, ensure_ascii=False).removesuffix("\n}")
    # One image a line, so that the file can be read by people and by line.
    lines = ",\n".join(f"    {json.dumps(_image(image, has_texts), ensure_ascii=False)}" for image in outcome.images)
    report.write_text(f'{head},\n  "per_image": [\n{lines}\n  ]\n}}\n', "utf-8")
    return results


def _image(image: ImageResult, has_texts: bool) -> dict[str, Any]:
    return {
        "image": str(image.path),
        "width": image.width,
        "height": image.height,
        **image.counts.to_dict(),
        "ground_truth": _regions(image.truths, "detection", has_texts),
        "found": _regions(image.detections, "ground_truth", has_texts),
    }


def _regions(regions: Sequence[Region], partner: str, has_texts: bool) -> list[dict[str, Any]]:
    records = []
    for region in regions:
        record: dict[str, Any] = {"state": region.state, "polygon": region.polygon.round(2).tolist()}
        if region.score is not None:
            record["score"] = round(region.score, 6)
        if region.text is not None and has_texts:
            record["text"] = region.text
        if region.partner is not None:
            record[partner] = region.partner
        records.append(record)
    return records
