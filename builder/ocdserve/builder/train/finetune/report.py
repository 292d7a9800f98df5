# SPDX-License-Identifier: Apache-2.0
"""What is said of a fine-tuned detector: the refusal, the origin of its weights, and a page with pictures."""

import base64
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdserve.backend import Bundle
from ocdserve.backend.evaluation.figures import Counts, total
from ocdserve.backend.evaluation.matching import assign, count, find_overlaps
from ocdserve.backend.spec.bundle import IN_FLOAT32
from ocdserve.builder.train.finetune.crops import read_picture
from ocdserve.builder.train.finetune.judge import Change, Page, Tuned
from ocdserve.builder.train.finetune.options import FineTuneOptions
from ocdserve.results.detections import Detections

_WEIGHTS_PACKAGE = "rapidocr"
_SHOWN, _WIDTH, _HEIGHT = 10, 520, 900
# RGB.
_MATCHED, _FALSE, _MISSED = (0, 170, 60), (230, 40, 40), (255, 150, 0)


def origin_of(bundle: Path | str | None, sha256: str) -> dict[str, Any]:
    """Where the weights come from that were trained further, and their licence as far as it is known."""
    found: dict[str, Any] = {"detector": str(bundle or "default"), "onnx_sha256": sha256}
    if bundle is None or str(bundle) in ("default", f"default{IN_FLOAT32}"):
        about = importlib.metadata.metadata(_WEIGHTS_PACKAGE)
        name = Path(Bundle.load().model_path).name
        licence = next((about[key] for key in ("License-Expression", "License") if key in about), "not stated")
        return {**found, "origin": f"{name} of {_WEIGHTS_PACKAGE} {about['Version']}", "licence": licence}
    folder = Bundle.load(bundle).model_path.parent if str(bundle) in Bundle.built_in else Path(bundle)
    try:
        report = json.loads((folder / "report.json").read_text("utf-8"))
        earlier = report.get("finetuning", report)["weights"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        earlier = {"origin": str(bundle), "licence": "not known: as that of the network that was given"}
    return {**found, "origin": earlier["origin"], "licence": earlier["licence"]}


def change_line(name: str, change: Change) -> str:
    """A change in one line: hmean before and after, the gain with its interval, matches lost and won."""
    low, high = change.interval
    return (
        f"{name} ({len(change.before)} pictures): hmean {total(change.before).hmean:.4f} -> "
        f"{total(change.after).hmean:.4f}, gain {change.gain:+.2f} points (95 %: {low:+.2f} to {high:+.2f}), "
        f"matches lost {change.lost}, won {change.won}"
    )


def refusal(tuned: Tuned, options: FineTuneOptions) -> str:
    """The message of a result that is not written: what was found, the rule, and what to try."""
    rows = {
        "held-aside pictures": tuned.change,
        **{f"other pictures, {kind}": change for kind, change in tuned.forgetting.items()},
    }
    table = "".join(f"\n  {change_line(name, change)}" for name, change in rows.items())
    if not tuned.is_better():
        if tuned.overlap is not None:
            before, after = tuned.overlap
            return (
                f"the fine-tuned detector is no nearer to its teacher on the held-aside pictures (overlap of the maps "
                f"{before:.4f} -> {after:.4f}), or loses more of its boxes than chance explains:{table}\n"
                "Nothing was written. Give more pictures, train longer (--steps), or name a better teacher (--teacher)."
            )
        return (
            f"the fine-tuned detector gains no more than a match on the held-aside pictures:{table}\n"
            "Nothing was written. Give more pictures, check that the labels outline each line of text as the detector "
            "should, or train longer (--steps)."
        )
    return (
        f"the fine-tuned detector loses more than {options.most_lost:g} points on other pictures:{table}\n"
        "Nothing was written. Give pictures of all kinds that the detector will see (--keep-data), or train shorter "
        "(--steps); where it will only see pictures like yours, allow more (--most-lost)."
    )


def html_report(name: str, facts: Mapping[str, Any], pages: Sequence[Page], tuned: Tuned) -> str:
    """A self-contained page: figures, settings, and the worst held-aside pictures before and after."""
    rows = {
        "held aside": tuned.change,
        **{f"other pictures: {kind}": change for kind, change in tuned.forgetting.items()},
    }
    figures = "".join(f"<tr>{_cells(kind, change)}</tr>" for kind, change in rows.items())
    worst = sorted(range(len(pages)), key=lambda index: tuned.change.after[index].hmean)[:_SHOWN]
    shown = "".join(_figure(pages[index], tuned.before[index], tuned.after[index]) for index in worst)
    return Template(files(__package__).joinpath("report.html").read_text("utf-8")).substitute(
        title=escape(name), figures=figures, pictures=shown, facts=escape(json.dumps(facts, indent=2))
    )


def _cells(kind: str, change: Change) -> str:
    low, high = change.interval
    cells = (
        kind,
        str(len(change.before)),
        f"{total(change.before).hmean:.4f}",
        f"{total(change.after).hmean:.4f}",
        f"{change.gain:+.2f}",
        f"{low:+.2f} to {high:+.2f}",
        str(change.lost),
        str(change.won),
    )
    return "".join(f"<td>{escape(cell)}</td>" for cell in cells)


def _figure(page: Page, before: Detections, after: Detections) -> str:
    pixels = read_picture(page.source) if isinstance(page.source, Path) else page.source
    parts = []
    for label, found in (("before", before), ("after", after)):
        picture, counts = _drawn(pixels, page, found)
        missed, false = counts.truths - counts.matched, counts.detections - counts.matched
        caption = (
            f"{page.name}, {label}: hmean {counts.hmean:.3f}, {missed} of {counts.truths} missed, "
            f"{false} of {counts.detections} false"
        )
        parts.append(f'<figure><img alt="" src="{picture}"><figcaption>{escape(caption)}</figcaption></figure>')
    return f'<div class="pair">{"".join(parts)}</div>\n'


def _drawn(pixels: NDArray[np.uint8], page: Page, found: Detections) -> tuple[str, Counts]:
    """A picture with matched, false and missed texts, as the address of a JPEG."""
    overlaps = find_overlaps(page.truth, found.quads)
    pairs = assign(overlaps, "greedy")
    matched, detected = {truth for truth, _ in pairs}, {detection for _, detection in pairs}
    scale = min(1.0, _WIDTH / pixels.shape[1], _HEIGHT / pixels.shape[0])
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    canvas = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    for index in np.flatnonzero(overlaps.truth_counts):
        if int(index) not in matched:
            _outline(canvas, page.truth.polygons[index] * scale, _MISSED)
    for index in np.flatnonzero(overlaps.detection_counts):
        _outline(canvas, found.quads[index] * scale, _MATCHED if int(index) in detected else _FALSE)
    _, encoded = cv2.imencode(".jpg", canvas[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    address = f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode()}"
    return address, count(overlaps, "greedy")


def _outline(canvas: NDArray[Any], polygon: NDArray[Any], colour: tuple[int, int, int]) -> None:
    # OpenCV's fixed-point coordinates, with four fractional bits.
    cv2.polylines(canvas, [np.rint(polygon * 16).astype(np.int32)], True, colour, 2, cv2.LINE_AA, 4)
