# SPDX-License-Identifier: Apache-2.0
"""Result files of an evaluation: TAO's results.json, and report.json with all details."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ocdserve.backend.evaluation.figures import Counts, total
from ocdserve.backend.spec.params import PostprocessParams
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
        unreadable: Images that could not be read; no figure includes them.
        notes: What was left out or is uncertain, a sentence each.
        seconds: From the first image to the last.
        params: Post-processing by the spec; mode `tao` selects TAO's rules.
    """

    images: tuple[ImageResult, ...]
    unreadable: tuple[Unreadable, ...]
    notes: tuple[str, ...]
    seconds: float
    params: PostprocessParams

    @property
    def counts(self) -> Counts:
        """Counts over all images, at the spec's thresholds."""
        return total(image.counts for image in self.images)

    @property
    def images_per_second(self) -> float:
        """Images per second, including unreadable ones."""
        return (len(self.images) + len(self.unreadable)) / max(self.seconds, 1e-9)

    def results(self) -> dict[str, float]:
        """Content of results.json, with TAO's names."""
        counts = self.counts
        return {"Precision": counts.precision, "Recall": counts.recall, "F-measure": self._hmean(counts)}

    def bitmap_sweep(self) -> list[dict[str, Any]]:
        """Figures at each bitmap threshold."""
        return self._swept("thresh", BITMAP_THRESHOLDS, [image.by_bitmap_threshold for image in self.images])

    def score_sweep(self) -> list[dict[str, Any]]:
        """Figures of the detections above each score threshold, from the spec's box_thresh on."""
        lowest = self.params.box_thresh
        rows = self._swept("box_thresh", SCORE_THRESHOLDS, [image.by_score_threshold for image in self.images])
        fixed = {"box_thresh": lowest, **self._figures(self.counts)}
        return [fixed, *(row for row in rows if row["box_thresh"] > lowest)]

    def summary(self) -> dict[str, Any]:
        """Content of report.json, without the images."""
        bitmap, score = self.bitmap_sweep(), self.score_sweep()
        return {
            "protocol": "tao" if self._is_tao else "icdar2015",
            "images": len(self.images),
            "images_per_second": round(self.images_per_second, 3),
            "seconds": round(self.seconds, 3),
            "fixed": {"thresh": self.params.thresh, "box_thresh": self.params.box_thresh, **self._figures(self.counts)},
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

    @property
    def _is_tao(self) -> bool:
        return self.params.mode == "tao"

    def _swept(self, name: str, values: Sequence[float], counts: list[tuple[Counts, ...]]) -> list[dict[str, Any]]:
        columns = zip(values, zip(*counts, strict=True), strict=False)
        return [{name: value, **self._figures(total(column))} for value, column in columns]

    def _hmean(self, counts: Counts) -> float:
        return counts.tao_hmean if self._is_tao else counts.hmean

    def _figures(self, counts: Counts) -> dict[str, Any]:
        return {**counts.to_dict(), "hmean": self._hmean(counts)}


def write_results(outcome: Outcome, folder: Path, has_texts: bool = True) -> Path:
    """Write results.json and report.json, and return the path of results.json.

    Args:
        outcome: The evaluation.
        folder: Folder to write to.
        has_texts: Whether report.json includes transcriptions.
    """
    results, report = folder / RESULTS_FILE, folder / REPORT_FILE
    results.write_text(json.dumps(outcome.results()), "utf-8")
    head = json.dumps(outcome.summary(), indent=2, ensure_ascii=False).removesuffix("\n}")
    # One line per image, for readers and for line-based tools.
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
