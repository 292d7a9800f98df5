# SPDX-License-Identifier: Apache-2.0
"""Our schemas against the published ones, key by key."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from ocdserve.builder.tao.actions import ACTIONS
from ocdserve.builder.tao.cli import main
from ocdserve.builder.tao.schema import json_schema
from ocdserve.builder.tao.spec import load_spec, write_experiment
from ocdserve.contract import InvalidInputError

REFERENCE = Path(__file__).parents[4] / "shared" / "reference" / "tao-ocdnet"
PUBLISHED = sorted(path.name.partition(".")[0] for path in (REFERENCE / "schemas").glob("*.schema.json"))

# TAO's names of types, and JSON Schema's.
TYPES = {
    "collection": "object",
    "list": "array",
    "string": "string",
    "categorical": "string",
    "bool": "boolean",
    "int": "integer",
    "float": "number",
}

# (key, what): why ours differs. Anything that differs and is not here fails.
DELIBERATE = {
    ("", "required"): "published schemas demand the section quantize, which the published deploy templates lack",
    ("quantize", "required"): "all keys of quantize have defaults, and the deploy templates lack it",
    ("gen_trt_engine.tensorrt.calibration.cal_image_dir", "default"): (
        "only INT8 without a cache needs images, so the list is empty, not mandatory"
    ),
    ("train.lr_scheduler.args.warmup_epoch", "minimum"): "the skill advises 0 for runs of one epoch",
    ("train.optimizer.args.lr", "minimum"): "the published condition '> 0.0' is an exclusive bound in JSON Schema",
    ("model.backbone", "enum"): "the plain ResNets are built too, as by TAO's code",
    ("train.post_processing.type", "enum"): "there is one kind, and another fails late in TAO",
    ("evaluate.post_processing.type", "enum"): "there is one kind, and another fails late in TAO",
    ("inference.post_processing.type", "enum"): "there is one kind, and another fails late in TAO",
    ("train.metric.type", "enum"): "there is one kind, and another fails late in TAO",
    ("evaluate.metric.type", "enum"): "there is one kind, and another fails late in TAO",
}


def properties(schema: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, value in schema.get("properties", {}).items():
        if isinstance(value, dict):
            yield prefix + name, value
            yield from properties(value, f"{prefix}{name}.")


def finite(value: Any) -> Any:
    """Published bounds may be Infinity, which is no JSON."""
    return None if isinstance(value, float) and math.isinf(value) else value


def differences(action: str) -> dict[tuple[str, str], str]:
    published = json.loads((REFERENCE / "schemas" / f"{action}.schema.json").read_text("utf-8"))
    ours = json_schema(action)
    known = dict(properties(ours))
    found: dict[tuple[str, str], str] = {}

    def compare(key: str, what: str, theirs: Any, mine: Any) -> None:
        if theirs != mine:
            found[key, what] = f"{theirs!r} there, {mine!r} here"

    compare("", "required", published.get("required"), ours.get("required"))
    for key, theirs in properties(published):
        if key not in known:
            found[key, "key"] = "there, not here"
            continue
        mine = known[key]
        kind = mine["type"] if isinstance(mine["type"], str) else mine["type"][0]
        compare(key, "type", TYPES[theirs["type"]], kind)
        compare(key, "required", theirs.get("required"), mine.get("required"))
        for what in ("minimum", "maximum"):
            compare(key, what, finite(theirs.get(what)), mine.get(what))
        compare(key, "enum", sorted(theirs.get("enum") or []), sorted(mine.get("enum") or []))
        compare(key, "pattern", theirs.get("pattern"), mine.get("pattern"))
        if theirs["type"] != "collection":
            compare(key, "default", theirs.get("default"), mine.get("default"))
    return found


@pytest.mark.parametrize("action", PUBLISHED or ["absent"])
def test_types_defaults_enums_and_bounds_are_the_published_ones(action: str) -> None:
    if action == "absent":
        pytest.skip(f"the published schemas are not there: {REFERENCE}")
    found = differences(action)
    for place, text in found.items():
        reason = DELIBERATE.get(place, "NOT DELIBERATE")
        sys.stdout.write(f"{action}: {place[0] or 'the schema'}, {place[1]}: {text}; {reason}\n")
    assert set(found) <= set(DELIBERATE)


def test_every_deliberate_difference_exists() -> None:
    if not PUBLISHED:
        pytest.skip(f"the published schemas are not there: {REFERENCE}")
    assert {place for action in PUBLISHED for place in differences(action)} == set(DELIBERATE)


def test_only_the_section_ocdserve_is_ours() -> None:
    if not PUBLISHED:
        pytest.skip(f"the published schemas are not there: {REFERENCE}")
    published = {
        key
        for action in PUBLISHED
        for key, _ in properties(json.loads((REFERENCE / "schemas" / f"{action}.schema.json").read_text("utf-8")))
    }
    ours = {key for key, _ in properties(json_schema("evaluate"))}
    assert {key.partition(".")[0] for key in ours - published} == {"ocdserve"}


def strict_problems(values: dict[str, Any], published: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """What TAO's schema refuses: unknown keys, values of another type, out of bounds or not among the options."""
    for name, value in values.items():
        key, rule = prefix + name, published.get(prefix + name)
        if rule is None:
            yield f"{key}: no such key"
        elif rule["type"] == "collection" and rule.get("properties"):
            yield from strict_problems(value, published, f"{key}.")
        elif value is None:
            # The published form has no nulls; where the default is one, it is an empty text there.
            if rule["type"] != "string" or rule.get("default") != "":
                yield f"{key}: null"
        elif value != "???" and not (rule["type"] == "string" and value == ""):
            schema = {"type": TYPES[rule["type"]]}
            schema |= {what: rule[what] for what in ("minimum", "maximum") if finite(rule.get(what)) is not None}
            schema |= {"enum": rule["enum"]} if rule.get("enum") else {}
            for error in jsonschema.Draft202012Validator(schema).iter_errors(value):
                yield f"{key}: {error.message}"


@pytest.mark.parametrize(
    "name", sorted(path.name for path in (REFERENCE / "references").glob("spec_template_*")) or [None]
)
def test_specs_written_here_are_accepted_by_a_strict_reading_of_the_published_schemas(
    name: str | None, tmp_path: Path
) -> None:
    if name is None:
        pytest.skip(f"the published schemas are not there: {REFERENCE}")
    published = {
        key: value
        for action in PUBLISHED
        for key, value in properties(json.loads((REFERENCE / "schemas" / f"{action}.schema.json").read_text("utf-8")))
    }
    assert main(["default_specs", f"results_dir={tmp_path}"]) == 0
    template = REFERENCE / "references" / name
    for path in (tmp_path / "experiment.yaml", write_experiment(load_spec(template).spec, tmp_path / "template")):
        assert list(strict_problems(yaml.safe_load(path.read_text("utf-8")), published)) == []


@pytest.mark.parametrize("path", sorted((REFERENCE / "references").glob("spec_template_*.yaml")) or [None])
def test_every_published_template_is_accepted(path: Path | None) -> None:
    if path is None:
        pytest.skip(f"the published templates are not there: {REFERENCE}")
    schema = json_schema("evaluate")
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    assert [error.message for error in validator.iter_errors(yaml.safe_load(path.read_text("utf-8")))] == []


@pytest.mark.parametrize(
    "content",
    [
        {"gen_trt_engine": {"tensorrt": {"data_type": "INT4"}}},
        {"gen_trt_engine": {"width": 0}},
        {"evaluate": {"batchsize": 1}},
        {"train": {"optimizer": {"args": {"lr": 0}}}},
        {"dataset": {"validate_dataset": {"args": {"pre_processes": [{"kind": "Resize2D"}]}}}},
    ],
)
def test_wrong_specs_are_not_accepted(content: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, json_schema("evaluate"))


def test_the_command_prints_a_schema_that_names_the_mandatory_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "gen_trt_engine"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["x-mandatory"] == ["gen_trt_engine.onnx_file", "gen_trt_engine.trt_engine"]
    assert schema["properties"]["gen_trt_engine"]["properties"]["width"]["default"] == 1280


def test_unknown_actions_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="no action 'detect'"):
        json_schema("detect")
    assert {"gen_trt_engine", "evaluate", "inference"} <= set(ACTIONS)
