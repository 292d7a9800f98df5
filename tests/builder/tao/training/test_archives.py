# SPDX-License-Identifier: Apache-2.0
"""Archives given as data: every action refuses them before it does anything, and says what to do."""

import json
import shutil
from pathlib import Path

import pytest

from ocdserve.builder.tao.actions import ACTIONS
from ocdserve.builder.tao.running import run_action

TRAIN, VALIDATE = "dataset.train_dataset.data_path", "dataset.validate_dataset.data_path"
IMAGES = "dataset.quant_calibration_dataset.images_dir"
# Keys that an action reads data from, and what else it cannot start without. gen_trt_engine has a test of its own;
# export and default_specs read no data.
CASES = [
    *((action, key, ()) for action in ("train", "automl") for key in (TRAIN, VALIDATE)),
    *(("retrain", key, ("model.pruned_graph_path=absent.pth",)) for key in (TRAIN, VALIDATE)),
    ("evaluate", VALIDATE, ("evaluate.trt_engine=absent.onnx",)),
    ("evaluate", VALIDATE, ("evaluate.checkpoint=absent.pth",)),
    ("inference", "inference.input_folder", ("inference.trt_engine=absent.onnx",)),
    ("inference", "inference.input_folder", ("inference.checkpoint=absent.pth",)),
    ("prune", VALIDATE, ("prune.checkpoint=absent.pth",)),
    *(("quantize", key, ("quantize.model_path=absent.pth",)) for key in (TRAIN, VALIDATE, IMAGES)),
]


@pytest.mark.parametrize(("action", "key", "others"), CASES)
def test_an_archive_given_as_data_is_refused(tmp_path: Path, action: str, key: str, others: tuple[str, ...]) -> None:
    for name in ("data", "good"):
        (tmp_path / name / "img").mkdir(parents=True)
    archive = shutil.make_archive(str(tmp_path / "data"), "gztar", tmp_path / "data")
    spec = tmp_path / "spec.yaml"
    spec.write_text("train:\n")
    data = {TRAIN: f"[{tmp_path / 'good'}]", VALIDATE: f"[{tmp_path / 'good'}]", key: archive}
    overrides = [f"{name}={value}" for name, value in data.items()]
    assert run_action(ACTIONS[action], spec, [f"results_dir={tmp_path / 'results'}", *overrides, *others]) == 1
    [status] = (tmp_path / "results").rglob("status.json")
    message = json.loads(status.read_text("utf-8").splitlines()[-1])["message"]
    assert f"{archive} is an archive, not a folder: extract it first, then name the folder" in message
