# SPDX-License-Identifier: Apache-2.0
"""Tables and JSON from results given as literals."""

import json

from ocdserve.backend.evaluation import Evaluation, ImageResult
from ocdserve.perf.environment import Environment
from ocdserve.perf.pipeline import OURS, Accuracy, PipelineResult
from ocdserve.perf.postprocess import PLAIN, Comparison, PostprocessResult
from ocdserve.perf.report import environment_text, pipeline_text, postprocess_text, serving_text, to_json
from ocdserve.perf.samples import Sample
from ocdserve.perf.serving import IN_PROCESS, LoadRun, ServingResult

ENVIRONMENT = Environment("Some CPU", 2, 23.5, "Linux", "3.11.7", {"numpy": "1.26.4"}, (0.5, 1.25, 2.0))
PIPELINE = PipelineResult(
    (Sample(OURS, "scene", "a", 0, 100.0), Sample("rapidocr", "scene", "a", 0, 325.0)),
    (
        Accuracy(OURS, "scene", Evaluation((ImageResult(1, 1, 2),))),
        Accuracy("rapidocr", "scene", Evaluation((ImageResult(1, 4, 2),))),
    ),
)
POSTPROCESS = PostprocessResult(
    (Sample(OURS, "dense", "m", 0, 2.0), Sample(PLAIN, "dense", "m", 0, 25.0)), (Comparison("dense", "m", 1000, 0.0),)
)
SERVING = ServingResult(
    "photo.jpg",
    (Sample(IN_PROCESS, "photo.jpg", "photo.jpg", 0, 100.0), Sample("ocdnet", "photo.jpg", "photo.jpg", 0, 112.5)),
    (LoadRun("ocdnet", 1, 2.0, (250.0, 250.0, 250.0)), LoadRun("ocdnet", 2, 1.0, (300.0, 310.0, 320.0))),
)


def test_the_pipeline_table_has_a_row_a_detector() -> None:
    assert pipeline_text(PIPELINE).splitlines()[1:] == [
        "data   detector  images  median ms  ours x  precision  recall   hmean  boxes",
        "scene  ocdserve       1      100.0   1.00x     1.0000  0.5000  0.6667      1",
        "scene  rapidocr       1      325.0   3.25x     0.2500  0.5000  0.3333      4",
    ]


def test_the_postprocess_table_has_a_row_a_group() -> None:
    assert postprocess_text(POSTPROCESS).splitlines()[1:] == [
        "maps   count  boxes  ours ms  plain ms  ours x  corners differ px",
        "dense      1   1000     2.00     25.00  12.50x           0.000000",
    ]


def test_the_serving_tables_tell_cost_and_throughput() -> None:
    lines = serving_text(SERVING).splitlines()
    assert lines[1:4] == [
        "path        median ms  added ms",
        "in process      100.0      +0.0",
        "ocdnet          112.5     +12.5",
    ]
    assert lines[6:] == [
        "path    clients  images/s  against 1  median ms",
        "ocdnet        1      1.50       1.00      250.0",
        "ocdnet        2      3.00       2.00      310.0",
    ]


def test_the_environment_says_how_busy_the_machine_was() -> None:
    assert environment_text(ENVIRONMENT).splitlines() == [
        "Some CPU, 2 cores, 23.5 GiB, load average 0.50 1.25 2.00",
        "Linux, Python 3.11.7",
        "numpy 1.26.4",
    ]


def test_this_machine_describes_itself() -> None:
    environment = Environment.current()
    assert environment.cpu
    assert environment.cores >= 1
    assert environment.versions["numpy"]


def test_json_holds_raw_times_environment_and_figures() -> None:
    document = json.loads(json.dumps(to_json(ENVIRONMENT, PIPELINE, POSTPROCESS, SERVING)))
    assert document["format_version"] == 1
    assert document["environment"]["load_average"] == [0.5, 1.25, 2.0]
    assert document["pipeline"]["samples"][1] == {
        "subject": "rapidocr",
        "group": "scene",
        "case": "a",
        "round": 0,
        "ms": 325.0,
    }
    assert document["pipeline"]["rows"][1]["times_ours"] == 3.25
    assert document["postprocess"]["rows"][0]["times_ours"] == 12.5
    assert document["serving"]["loads"][1]["latencies_ms"] == [300.0, 310.0, 320.0]
    assert document["serving"]["throughput"][1]["per_second"] == 3.0


def test_json_leaves_out_what_was_not_measured() -> None:
    assert set(to_json(ENVIRONMENT, None, POSTPROCESS, None)) == {"format_version", "environment", "postprocess"}
