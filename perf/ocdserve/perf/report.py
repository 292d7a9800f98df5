# SPDX-License-Identifier: Apache-2.0
"""Results as text tables and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ocdserve.perf.environment import Environment
from ocdserve.perf.pipeline import PipelineResult
from ocdserve.perf.postprocess import PostprocessResult
from ocdserve.perf.serving import ServingResult

# 1: first version.
FORMAT_VERSION = 1


def environment_text(environment: Environment) -> str:
    """One paragraph."""
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    load = " ".join(f"{value:.2f}" for value in environment.load_average)
    return (
        f"{environment.cpu}, {environment.cores} cores, {environment.memory_gib:g} GiB, load average {load}\n"
        f"{environment.system}, Python {environment.python}\n{versions}"
    )


def pipeline_text(result: PipelineResult) -> str:
    """Table of the detectors on one thread."""
    rows = [
        (
            row.data,
            row.detector,
            f"{row.images}",
            f"{row.median_ms:.1f}",
            f"{row.times_ours:.2f}x",
            f"{row.precision:.4f}",
            f"{row.recall:.4f}",
            f"{row.hmean:.4f}",
            f"{row.boxes}",
        )
        for row in result.rows()
    ]
    headers = ("data", "detector", "images", "median ms", "ours x", "precision", "recall", "hmean", "boxes")
    return _titled(
        "Encoded image to boxes, one thread, in turns image by image "
        "(ours x: its time divided by ocdserve's, median over the images)",
        _table(headers, rows, text_columns=2),
    )


def postprocess_text(result: PostprocessResult) -> str:
    """Table of the post-processing."""
    rows = [
        (
            row.maps,
            f"{row.count}",
            f"{row.boxes}",
            f"{row.ours_ms:.2f}",
            f"{row.plain_ms:.2f}",
            f"{row.times_ours:.2f}x",
            f"{row.largest_difference_px:.6f}",
        )
        for row in result.rows()
    ]
    headers = ("maps", "count", "boxes", "ours ms", "plain ms", "ours x", "corners differ px")
    return _titled(
        "Post-processing against a plain loop over contours, one thread, in turns map by map; the boxes are the same",
        _table(headers, rows, text_columns=1),
    )


def serving_text(result: ServingResult) -> str:
    """Tables of single requests and of load."""
    latencies = [(row.path, f"{row.median_ms:.1f}", f"{row.added_ms:+.1f}") for row in result.latency_rows()]
    loads = [
        (
            row.path,
            f"{row.concurrency}",
            f"{row.per_second:.2f}",
            f"{row.against_one_client:.2f}",
            f"{row.median_ms:.1f}",
        )
        for row in result.throughput_rows()
    ]
    latency_table = _titled(
        f"One request at a time over gRPC, {result.image}, in turns (added: median difference to in process)",
        _table(("path", "median ms", "added ms"), latencies, text_columns=1),
    )
    load_table = _titled(
        f"Clients without a pause, {result.image} (bare network: in this process, without decoding and boxes)",
        _table(("path", "clients", "images/s", "against 1", "median ms"), loads, text_columns=1),
    )
    return f"{latency_table}\n\n{load_table}"


def to_json(
    environment: Environment,
    pipeline: PipelineResult | None,
    postprocess: PostprocessResult | None,
    serving: ServingResult | None,
) -> dict[str, Any]:
    """Raw samples, and the rows that follow from them; sections that were not measured are left out."""
    document: dict[str, Any] = {"format_version": FORMAT_VERSION, "environment": asdict(environment)}
    if pipeline:
        document["pipeline"] = {
            "rows": [asdict(row) for row in pipeline.rows()],
            "samples": [asdict(sample) for sample in pipeline.samples],
        }
    if postprocess:
        document["postprocess"] = {
            "rows": [asdict(row) for row in postprocess.rows()],
            "maps": [asdict(comparison) for comparison in postprocess.comparisons],
            "samples": [asdict(sample) for sample in postprocess.samples],
        }
    if serving:
        document["serving"] = {
            "image": serving.image,
            "latency": [asdict(row) for row in serving.latency_rows()],
            "throughput": [asdict(row) for row in serving.throughput_rows()],
            "samples": [asdict(sample) for sample in serving.samples],
            "loads": [asdict(load) for load in serving.loads],
        }
    return document


def _titled(title: str, table: str) -> str:
    return f"{title}\n{table}"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int) -> str:
    """Columns as wide as their widest cell, numbers to the right."""
    lines = [headers, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
