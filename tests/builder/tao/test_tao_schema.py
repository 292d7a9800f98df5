# SPDX-License-Identifier: Apache-2.0
"""Schemas in NVIDIA's form against those that it publishes."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ocdserve.builder.tao.actions import ACTIONS as REGISTRY
from ocdserve.builder.tao.cli import main
from ocdserve.builder.tao.spec import Spec, SpecError, load_spec
from ocdserve.builder.tao.tao_schema import tao_schema, write_schemas
from ocdserve.contract import InvalidInputError

SCHEMAS = Path(__file__).parents[4] / "shared" / "reference" / "tao-ocdnet" / "schemas"
ACTIONS = ("train", "evaluate", "inference", "export", "prune", "quantize", "retrain", "gen_trt_engine")

PRUNED = "model.pruned_graph_path"
KINDS = ("train.post_processing", "train.metric", "evaluate.post_processing", "evaluate.metric")
# Differences of (path, what), the reasons of which are in `test_schema`; the last two are only of form.
DELIBERATE = {
    *((f"{key}.type", what) for key in (*KINDS, "inference.post_processing") for what in ("enum", "type")),
    ("", "required"),
    ("quantize", "required"),
    ("gen_trt_engine", "default"),
    ("gen_trt_engine.tensorrt", "default"),
    ("gen_trt_engine.tensorrt.calibration", "default"),
    ("gen_trt_engine.tensorrt.calibration.cal_image_dir", "default"),
    ("train.lr_scheduler.args.warmup_epoch", "minimum"),
    ("model.backbone", "enum"),
    ("quantize.backend_kwargs", "default"),
    ("", "automl_disabled_parameters among the properties"),
}


def comparable(name: str, value: Any) -> Any:
    """Lists of keys are sets; infinite bounds, which are no JSON, are none."""
    if isinstance(value, float) and math.isinf(value):
        return None
    keys = ("popular", "enum", "required", "automl_disabled_parameters", "automl_default_parameters")
    return sorted(value) if name in keys and isinstance(value, list) else value


def differences(theirs: dict[str, Any], ours: dict[str, Any], key: str = "") -> Iterator[tuple[str, str]]:
    for name in theirs.keys() | ours.keys():
        if name == "properties":
            inner, mine = dict(theirs.get(name, {})), ours.get(name)
            if mine is None:
                yield key, name
                continue
            if inner.pop("automl_disabled_parameters", None) is not None:
                yield key, "automl_disabled_parameters among the properties"
            for child in inner.keys() | mine.keys():
                path = f"{key}.{child}".lstrip(".")
                if child in inner and child in mine:
                    yield from differences(inner[child], mine[child], path)
                else:
                    yield path, "key"
        elif name not in ("title", "description") and comparable(name, theirs.get(name)) != comparable(
            name, ours.get(name)
        ):
            yield key, name


@pytest.mark.parametrize("action", ACTIONS)
def test_schemas_in_nvidia_s_form_are_the_published_ones(action: str) -> None:
    path = SCHEMAS / f"{action}.schema.json"
    if not path.is_file():
        pytest.skip(f"the published schemas are not there: {SCHEMAS}")
    published, ours = json.loads(path.read_text("utf-8")), tao_schema(action)
    source = published["x_tao_schema"].pop("source")
    assert (source, ours["x_tao_schema"].pop("source")) == ("tao-core dataclass config", "ocdserve")
    found = set(differences(published, ours))
    defaults = {("", "default")} if action == "gen_trt_engine" else set()
    assert found - DELIBERATE == defaults


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "prune", "--tao"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["x_tao_schema"]["action"] == "prune"
    assert set(schema["properties"]) == {
        *("model_name", "encryption_key", "results_dir", "wandb"),
        *("model", "dataset", "train", "quantize", "prune"),
    }
    assert schema["properties"]["train"]["properties"]["optimizer"]["properties"]["args"]["properties"]["lr"] == {
        "type": "float",
        "title": "lr",
        "description": "learning rate",
        "default": 0.001,
        "minimum": 0,
        "math_cond": "> 0.0",
        "automl_enabled": True,
        "popular": True,
    }


def test_actions_without_a_published_schema_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="TAO has no schema for 'default_specs'; it has those of train, "):
        tao_schema("default_specs")


class TestFiles:
    def test_a_folder_has_schemas_and_templates_of_all_actions(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["schema", "--output", str(tmp_path / "new")]) == 0
        manifest = json.loads((tmp_path / "new" / "schemas" / "manifest.json").read_text("utf-8"))
        assert set(manifest["actions"]) == set(ACTIONS)
        for action, entry in manifest["actions"].items():
            assert json.loads((tmp_path / "new" / entry["path"]).read_text("utf-8")) == tao_schema(action)
            template = tmp_path / "new" / entry["spec_template"]
            assert load_spec(template).spec == Spec()
            assert set(yaml.safe_load(template.read_text("utf-8"))) == set(tao_schema(action)["properties"])
        assert "onnx_file: null" in (tmp_path / "new" / "references" / "spec_template_export.yaml").read_text("utf-8")
        assert "manifest.json" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("action", "missing"),
        [
            ("train", ["dataset.train_dataset.data_path", "dataset.validate_dataset.data_path"]),
            ("retrain", ["dataset.train_dataset.data_path", "dataset.validate_dataset.data_path", PRUNED]),
            ("export", ["export.checkpoint"]),
            ("prune", ["prune.checkpoint"]),
            ("quantize", ["quantize.model_path"]),
            ("gen_trt_engine", ["gen_trt_engine.onnx_file", "gen_trt_engine.trt_engine"]),
        ],
    )
    def test_a_template_needs_the_action_s_inputs_and_nothing_else(
        self, tmp_path: Path, action: str, missing: list[str]
    ) -> None:
        write_schemas(tmp_path)
        template = tmp_path / "references" / f"spec_template_{action}.yaml"
        row = REGISTRY[action]
        with pytest.raises(SpecError) as caught:
            row.check_mandatory(load_spec(template).spec)
        assert str(caught.value).startswith(f"{action} needs {' and '.join(missing)}; set ")
        row.check_mandatory(load_spec(template, [f"{key}=x" for key in missing]).spec)

    def test_the_manifest_has_the_published_one_s_entries(self, tmp_path: Path) -> None:
        if not (SCHEMAS / "manifest.json").is_file():
            pytest.skip(f"the published schemas are not there: {SCHEMAS}")
        published = json.loads((SCHEMAS / "manifest.json").read_text("utf-8"))
        ours = json.loads(write_schemas(tmp_path).read_text("utf-8"))
        actions = ours.pop("actions")
        for action, entry in published.pop("actions").items():
            found = {name: comparable(name, value) for name, value in actions[action].items()}
            assert found == {name: comparable(name, value) for name, value in entry.items()}
        assert ours == published

    def test_an_action_and_a_folder_exclude_each_other(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for arguments in ([], ["train", "--output", str(tmp_path)]):
            assert main(["schema", *arguments]) == 1
            assert "name an action, or with --output the folder" in capsys.readouterr().err
