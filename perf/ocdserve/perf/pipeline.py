# SPDX-License-Identifier: Apache-2.0
"""Our detector against RapidOCR over the same network: from the encoded image to boxes, on one thread each."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend import Detector
from ocdserve.backend.bundle import Bundle
from ocdserve.backend.evaluation import Evaluation, ImageResult, match
from ocdserve.perf.data_sets import DataSet
from ocdserve.perf.measurement import Measurement
from ocdserve.perf.samples import Progress, Sample, in_turns, median_ms, median_ratio, series
from ocdserve.perf.threads import one_opencv_thread

# An encoded image to quads (N, 4, 2) in source pixels.
Detect = Callable[[bytes], NDArray[Any]]

OURS = "ocdserve"


@dataclass(frozen=True)
class Accuracy:
    """How right one detector was on one data set."""

    subject: str
    group: str
    evaluation: Evaluation


@dataclass(frozen=True)
class PipelineRow:
    """One detector on one data set.

    Attributes:
        data: Name of the data set.
        detector: Name of the detector.
        images: Images in the data set.
        median_ms: Median time of an image.
        times_ours: Median over the images of this detector's time divided by ours.
        precision: Share of its boxes that are right.
        recall: Share of the texts that it found.
        hmean: Harmonic mean of the two.
        boxes: Its boxes outside of don't-care regions.
    """

    data: str
    detector: str
    images: int
    median_ms: float
    times_ours: float
    precision: float
    recall: float
    hmean: float
    boxes: int


@dataclass(frozen=True)
class PipelineResult:
    """Raw times and the accuracy of all detectors on all data sets."""

    samples: tuple[Sample, ...]
    accuracies: tuple[Accuracy, ...]

    def measurements(self) -> tuple[Measurement, ...]:
        """A series a data set and detector."""
        return tuple(
            series(
                self.samples,
                "pipeline",
                accuracy.subject,
                accuracy.group,
                baseline=OURS,
                factors={"threads": 1},
                facts={
                    "boxes": accuracy.evaluation.detections,
                    "precision": accuracy.evaluation.precision,
                    "recall": accuracy.evaluation.recall,
                    "hmean": accuracy.evaluation.hmean,
                },
            )
            for accuracy in self.accuracies
        )

    def rows(self) -> tuple[PipelineRow, ...]:
        """The figures, data set by data set."""
        return tuple(
            PipelineRow(
                data=accuracy.group,
                detector=accuracy.subject,
                images=len(accuracy.evaluation.images),
                median_ms=median_ms(self.samples, accuracy.subject, accuracy.group),
                times_ours=median_ratio(self.samples, accuracy.subject, OURS, accuracy.group),
                precision=accuracy.evaluation.precision,
                recall=accuracy.evaluation.recall,
                hmean=accuracy.evaluation.hmean,
                boxes=accuracy.evaluation.detections,
            )
            for accuracy in self.accuracies
        )


def measure_pipelines(
    detectors: Mapping[str, Detect], data_sets: Sequence[DataSet], rounds: int, progress: Progress
) -> PipelineResult:
    """Run all detectors over all images, taking turns image by image.

    Before a data set is measured, each detector sees its first image once without being timed. A network
    that compiles for each size of image does so within the measurement, as it would in use.

    Args:
        detectors: By name; `OURS` must be among them.
        data_sets: What to detect in.
        rounds: How often each image is measured.
        progress: Is told of images done.
    """
    samples: list[Sample] = []
    accuracies: list[Accuracy] = []
    total = rounds * sum(len(data.images) for data in data_sets)
    with one_opencv_thread():
        for data in data_sets:
            results: dict[str, list[ImageResult]] = {name: [] for name in detectors}
            for detect in detectors.values():
                detect(data.images[0].encoded)
            for round_, (index, image) in itertools.product(range(rounds), enumerate(data.images)):
                calls = {name: _bound(detect, image.encoded) for name, detect in detectors.items()}
                for name, ms, quads in in_turns(calls, index + round_):
                    samples.append(Sample(name, data.name, image.name, round_, ms))
                    if round_ == 0:
                        results[name].append(match(quads, image.truth))
                progress(len(samples) // len(detectors), total)
            accuracies += [Accuracy(name, data.name, Evaluation(tuple(found))) for name, found in results.items()]
    return PipelineResult(tuple(samples), tuple(accuracies))


def one_thread_detectors() -> dict[str, Detect]:
    """Our detector and RapidOCR with its default and its OpenVINO engine, each on one thread.

    RapidOCR is called as its users do: bytes in, without classification and recognition. That includes its
    cutting out of each box, which it does for the recognition.
    """
    return {OURS: _ours(), "rapidocr": _rapidocr("onnxruntime"), "rapidocr-openvino": _rapidocr("openvino")}


def _bound(detect: Detect, encoded: bytes) -> Callable[[], NDArray[Any]]:
    return lambda: detect(encoded)


def _ours() -> Detect:
    detector = Detector.load(threads=1)
    return lambda encoded: detector.detect(encoded).quads


def _rapidocr(engine: str) -> Detect:
    from rapidocr import EngineType, RapidOCR

    one_thread = {
        "onnxruntime": {
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        },
        "openvino": {"EngineConfig.openvino.inference_num_threads": 1},
    }
    detector: Any = RapidOCR(
        params={
            # The same file for all, and nothing is downloaded.
            "Det.model_path": str(Bundle.load().model_path),
            "Det.engine_type": EngineType(engine),
            "Global.use_cls": False,
            "Global.use_rec": False,
            "Global.log_level": "critical",
            **one_thread[engine],
        }
    )

    def detect(encoded: bytes) -> NDArray[Any]:
        boxes = detector(encoded).boxes
        return np.empty((0, 4, 2), np.float32) if boxes is None else np.asarray(boxes, np.float32)

    return detect
