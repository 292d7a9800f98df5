# SPDX-License-Identifier: Apache-2.0
import re
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ocdserve.builder.tao.actions import ACTIONS
from ocdserve.builder.tao.running import results_dir
from ocdserve.builder.tao.spec import Spec, SpecError, load_spec, write_experiment

TEMPLATES = Path(__file__).parents[5] / "shared" / "reference" / "tao-ocdnet" / "references"
PRE_PROCESSES = "dataset.validate_dataset.args.pre_processes"
CALIBRATION = "gen_trt_engine.tensorrt.calibration"


def spec_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(text, "utf-8")
    return path


def problem(overrides: list[str]) -> str:
    with pytest.raises(SpecError) as caught:
        load_spec(None, overrides)
    return str(caught.value)


class TestPrecedence:
    def test_overrides_take_precedence_over_the_file_and_the_file_over_defaults(self, tmp_path: Path) -> None:
        file = spec_file(tmp_path, "gen_trt_engine:\n  width: 640\n  height: 352\n")
        settings = load_spec(file, ["gen_trt_engine.width=960"]).spec.gen_trt_engine
        assert (settings.width, settings.height, settings.tensorrt.workspace_size) == (960, 352, 1024)

    def test_the_last_of_two_overrides_counts(self) -> None:
        assert load_spec(None, ["gen_trt_engine.width=64", "gen_trt_engine.width=96"]).spec.gen_trt_engine.width == 96

    def test_lists_are_replaced_as_a_whole(self, tmp_path: Path) -> None:
        file = spec_file(tmp_path, "dataset:\n  validate_dataset:\n    args:\n      ignore_tags: ['a']\n")
        assert load_spec(file).spec.dataset.validate_dataset.args.ignore_tags == ("a",)

    def test_an_element_of_a_list_can_be_overridden(self) -> None:
        key = "dataset.validate_dataset.args.pre_processes.0.args.short_size"
        steps = load_spec(None, [f"{key}=[640,352]"]).spec.dataset.validate_dataset.args.pre_processes
        assert steps[0].args == {"short_size": [640, 352], "resize_text_polys": True}

    def test_keys_can_refer_to_others(self) -> None:
        spec = load_spec(None, ["results_dir=/r", "evaluate.trt_engine=${results_dir}/a.engine"]).spec
        assert spec.evaluate.trt_engine == "/r/a.engine"

    def test_hydra_s_plus_signs_are_accepted(self) -> None:
        assert load_spec(None, ["++gen_trt_engine.width=64", "+model_name=x"]).spec.gen_trt_engine.width == 64

    def test_the_spec_cannot_be_changed(self) -> None:
        with pytest.raises(FrozenInstanceError):
            load_spec(None).spec.results_dir = "x"  # type: ignore[misc]


class TestValues:
    @pytest.mark.parametrize("text", ["007", "1e3", "true", "a=b", "with space", "2024-01-01", "'quoted'", "x: y"])
    def test_texts_are_kept_verbatim(self, text: str) -> None:
        """Fault 25: spaces and quotes in overrides."""
        assert load_spec(None, [f"model_name={text}"]).spec.model_name == text.strip("'")

    @pytest.mark.parametrize("text", ["${oc.env:HOME}", "a/${ oc.env : HOME }", "${${x}:HOME}", "${oc.decode:'1'}"])
    def test_a_spec_file_cannot_read_the_environment(self, text: str, tmp_path: Path) -> None:
        """A stranger's spec could otherwise put secrets into the names of results."""
        (tmp_path / "spec.yaml").write_text(f'x: oc.env\nevaluate:\n  results_dir: "{text}"\n')
        with pytest.raises(SpecError, match=r"evaluate\.results_dir: .* calls a function; in a spec file"):
            load_spec(tmp_path / "spec.yaml")

    @pytest.mark.parametrize("text", ["${results_dir}/a", "${results_dir}:b", "s3://${results_dir}", "a:b"])
    def test_references_and_colons_are_kept(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "spec.yaml").write_text(f'results_dir: /r\nevaluate:\n  results_dir: "{text}"\n')
        assert load_spec(tmp_path / "spec.yaml").spec.evaluate.results_dir == text.replace("${results_dir}", "/r")

    def test_text_numbers_are_converted_as_omegaconf_does(self) -> None:
        spec = load_spec(None, ["gen_trt_engine.width='64'", "train.optimizer.args.lr=1e-4"]).spec
        assert (spec.gen_trt_engine.width, spec.train.optimizer.args.lr) == (64, 1e-4)

    @pytest.mark.parametrize("text", ["[*,###]", "['*','###']", '["*", "###"]'])
    def test_lists_may_have_yaml_s_reserved_characters(self, text: str) -> None:
        spec = load_spec(None, [f"dataset.validate_dataset.args.ignore_tags={text}"]).spec
        assert spec.dataset.validate_dataset.args.ignore_tags == ("*", "###")

    @pytest.mark.parametrize(
        "text",
        [
            "[{type:Resize2D,args:{short_size:[640,352],resize_text_polys:false}}]",
            "[{type: Resize2D,args: {short_size: [640,352], resize_text_polys:false}}]",
            "[{'type':'Resize2D',\"args\":{'short_size':[640,352],resize_text_polys:false}}]",
            "[ { type : Resize2D , args :{ short_size :[640, 352] , resize_text_polys : false } } ]",
        ],
    )
    def test_mappings_may_be_written_without_blanks(self, text: str) -> None:
        """Hydra needs none after a colon, YAML does."""
        steps = load_spec(None, [f"{PRE_PROCESSES}={text}"]).spec.dataset.validate_dataset.args.pre_processes
        assert [step.type for step in steps] == ["Resize2D"]
        assert steps[0].args == {"short_size": [640, 352], "resize_text_polys": False}

    def test_only_the_first_colon_of_an_entry_ends_its_key(self) -> None:
        text = "{a:C:/x,b:[n:fp32,'k:v'],c:{d:http://e,'f:g':\"h,i:j\"},k:it's,l:1}"
        assert load_spec(None, [f"quantize.backend_kwargs={text}"]).spec.quantize.backend_kwargs == {
            "a": "C:/x",
            "b": ["n:fp32", "k:v"],
            "c": {"d": "http://e", "f:g": "h,i:j"},
            "k": "it's",
            "l": 1,
        }

    def test_layers_keep_their_colons(self) -> None:
        layers = load_spec(None, ["gen_trt_engine.tensorrt.layers_precision=[/a/Conv:fp32,b:0:fp16]"]).spec
        assert layers.gen_trt_engine.tensorrt.layers_precision == ("/a/Conv:fp32", "b:0:fp16")

    def test_one_text_means_a_list_of_one(self) -> None:
        """The samples of older documentation give cal_image_dir so."""
        spec = load_spec(None, [f"{CALIBRATION}.cal_image_dir=/images"]).spec
        assert spec.gen_trt_engine.tensorrt.calibration.cal_image_dir == ("/images",)

    def test_the_older_name_of_cal_batches_is_accepted_with_a_note(self, tmp_path: Path) -> None:
        text = "gen_trt_engine: {tensorrt: {calibration: {cal_num_batches: 5}}}"
        loaded = load_spec(spec_file(tmp_path, text))
        assert loaded.spec.gen_trt_engine.tensorrt.calibration.cal_batches == 5
        assert "cal_num_batches" in loaded.notes[0]
        assert load_spec(None, [f"{CALIBRATION}.cal_num_batches=4"]).spec == replace_batches(4)

    def test_pretrained_weights_may_stand_in_the_section_train(self, tmp_path: Path) -> None:
        """As the older of NVIDIA's two skills has it."""
        loaded = load_spec(spec_file(tmp_path, "train: {pretrained_model_path: a.pth}\nmodel:\n"))
        assert (loaded.spec.model.pretrained_model_path, len(loaded.notes)) == ("a.pth", 1)
        assert load_spec(None, ["train.pretrained_model_path=a.pth"]).spec == loaded.spec
        unset = load_spec(spec_file(tmp_path, "train: {pretrained_model_path: null}"))
        assert (unset.spec, unset.notes) == (Spec(), ())
        both = "train: {pretrained_model_path: a.pth}\nmodel: {pretrained_model_path: b.pth}"
        with pytest.raises(SpecError, match=r"train\.pretrained_model_path is the older name .* give one of them"):
            load_spec(spec_file(tmp_path, both))

    def test_null_and_empty_texts_are_the_same(self, tmp_path: Path) -> None:
        """Fault 13: an empty file name is none."""
        file = spec_file(tmp_path, "export: {onnx_file: null}\ngen_trt_engine: {timing_cache: null}\nquantize:\n")
        assert load_spec(file).spec == Spec() == load_spec(None, ["export.onnx_file=", "results_dir=null"]).spec


def replace_batches(count: int) -> Spec:
    spec = Spec()
    settings = spec.gen_trt_engine
    calibration = replace(settings.tensorrt.calibration, cal_batches=count)
    return replace(spec, gen_trt_engine=replace(settings, tensorrt=replace(settings.tensorrt, calibration=calibration)))


class TestRefusals:
    @pytest.mark.parametrize(
        ("override", "nearest"),
        [
            ("gen_trt_engine.tensorrt.data_typ=INT8", "gen_trt_engine.tensorrt.data_type"),
            ("train.load_pruned_graph=true", "model.load_pruned_graph"),
            ("gen_trt_engine.workspace_size=3", "gen_trt_engine.tensorrt.workspace_size"),
            ("evalute.trt_engine=x", "evaluate"),
        ],
    )
    def test_unknown_keys_name_the_nearest(self, override: str, nearest: str) -> None:
        assert f"did you mean {nearest}?" in problem([override])

    def test_all_unknown_keys_are_reported_at_once(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError) as caught:
            load_spec(spec_file(tmp_path, "evaluate: {batchsize: 1}\ninference: {widht: 2}"))
        assert str(caught.value).count("unknown key") == 2

    def test_a_precision_in_lower_case_is_accepted(self, tmp_path: Path) -> None:
        spec = load_spec(spec_file(tmp_path, "gen_trt_engine: {tensorrt: {data_type: int8}}")).spec
        assert spec.gen_trt_engine.tensorrt.data_type == "INT8"

    @pytest.mark.parametrize(
        ("override", "words"),
        [
            ("gen_trt_engine.width=abc", "gen_trt_engine.width: .*must be a whole number"),
            ("gen_trt_engine.width=1.5", "gen_trt_engine.width: .*must be a whole number"),
            ("gen_trt_engine.width=true", "gen_trt_engine.width: .*must be a whole number"),
            ("gen_trt_engine.verbose=perhaps", "must be true or false"),
            ("evaluate.gpu_ids=[a]", r"evaluate.gpu_ids\[0\] must be a whole number; got 'a'"),
            ("evaluate=3", "evaluate must be a mapping"),
            ("gen_trt_engine.width=0", "gen_trt_engine.width must be at least 1; got 0"),
            ("inference.post_processing.args.thresh=1.5", "must be at least 0 and at most 1; got 1.5"),
            ("gen_trt_engine.tensorrt.data_type=BF16", "must be one of FP32, FP16, INT8; got 'BF16'"),
            ("train.optimizer.args.lr=0", "must be greater than 0"),
            ("train.optimizer.args.lr=nan", "must be finite"),
            ("model.inner_channels=128", "must be 256"),
            ("quantize.device=tpu", "must match"),
            ("results_dir=${nowhere}", "nowhere"),
            ("~train", "would remove"),
            (f"{PRE_PROCESSES}=[{{type:*}}]", r"cannot be read as YAML, .*\[\{type:\*\}\].* quotes"),
            (f"{PRE_PROCESSES}=[{{type:A}}", r"cannot be read as YAML"),
            ("train", "must be dotted.key=value"),
        ],
    )
    def test_wrong_values_name_key_rule_and_value(self, override: str, words: str) -> None:
        assert re.search(words, problem([override]))

    def test_a_wrong_post_processing_is_refused_at_once(self) -> None:
        """Fault 23: in TAO a wrong type fails later, as something that is not callable."""
        assert "SegDetectorRepresenter; got 'Other'" in problem(["evaluate.post_processing.type=Other"])
        assert "QuadMetric; got 'Other'" in problem(["evaluate.metric.type=Other"])

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("a: [1", "not valid YAML"),
            ("[" * 5000, "not valid YAML"),
            ("results_dir: " + "9" * 5000, "not valid YAML"),
            ("a: 1\na: 2", "not valid YAML"),
            ("- a", "got a list"),
            ("a: b: c", "not valid YAML"),
            ("quantize: {backend_kwargs: [1]}", r"quantize.backend_kwargs must be a mapping; got \[1\]"),
            ("quantize: {layers: [], device:cuda}", "'quantize.device:cuda': a blank must follow the colon of a key"),
            ("evaluate: [1]", r"evaluate must be a mapping of keys; got \[1\]"),
            ("evaluate: {post_processing: {args: [0.3]}}", r"evaluate.post_processing.args must be a mapping"),
            ("dataset: {validate_dataset: {data_path: {a: 1}}}", "validate_dataset.data_path must be a list of text"),
        ],
    )
    def test_broken_files_are_refused(self, tmp_path: Path, text: str, words: str) -> None:
        with pytest.raises(SpecError, match=words):
            load_spec(spec_file(tmp_path, text))

    def test_a_binary_file_and_a_missing_one_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "spec.yaml"
        with pytest.raises(SpecError, match="no spec file"):
            load_spec(path)
        path.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(SpecError, match=r"not UTF-8|not valid YAML"):
            load_spec(path)


@pytest.mark.parametrize("name", sorted(path.name for path in TEMPLATES.glob("spec_template_*.yaml")) or ["absent"])
def test_every_published_template_loads(name: str) -> None:
    if name == "absent":
        pytest.skip(f"the published templates are not there: {TEMPLATES}")
    spec = load_spec(TEMPLATES / name).spec
    content = yaml.safe_load((TEMPLATES / name).read_text("utf-8"))
    assert spec.model.k == content.get("model", {}).get("k", 50)
    if "deploy_gen" in name:
        assert spec.gen_trt_engine.tensorrt.data_type == "INT8"
        assert spec.gen_trt_engine.tensorrt.calibration.cal_batch_size == 8


class TestExperiment:
    def test_the_file_reads_back_to_the_same_spec(self, tmp_path: Path) -> None:
        spec = load_spec(None, ["results_dir=007", "evaluate.gpu_ids=[1,2]", "model_name='true'"]).spec
        assert load_spec(write_experiment(spec, tmp_path)).spec == spec

    @settings(max_examples=5)
    @given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20), st.integers(1, 10**6))
    def test_any_text_survives(self, tmp_path_factory: Any, text: str, width: int) -> None:
        if "${" in text or text == "???":
            return
        spec = replace(Spec(), model_name=text, gen_trt_engine=replace(Spec().gen_trt_engine, width=width))
        assert load_spec(write_experiment(spec, tmp_path_factory.getbasetemp())).spec == spec

    def test_unset_texts_are_null_where_tao_s_are(self, tmp_path: Path) -> None:
        """TAO's export takes its default file name only if `onnx_file` is null."""
        written = yaml.safe_load(write_experiment(Spec(), tmp_path).read_text("utf-8"))
        assert {key for key, value in leaves(written) if value is None} == {
            "model_name",
            "encryption_key",
            "model.pruned_graph_path",
            "model.pretrained_model_path",
            "train.resume_training_checkpoint_path",
            "train.results_dir",
            "evaluate.trt_engine",
            "evaluate.results_dir",
            "inference.trt_engine",
            "inference.results_dir",
            "export.results_dir",
            "export.onnx_file",
            "prune.results_dir",
            "gen_trt_engine.results_dir",
            "gen_trt_engine.timing_cache",
        }

    def test_only_our_own_keys_that_were_set_are_written(self, tmp_path: Path) -> None:
        assert "ocdserve" not in write_experiment(Spec(), tmp_path).read_text("utf-8")
        spec = load_spec(None, ["ocdserve.compat=tao", "ocdserve.threads=0", "ocdserve.architectures=[sm_89]"]).spec
        path = write_experiment(spec, tmp_path)
        assert yaml.safe_load(path.read_text("utf-8"))["ocdserve"] == {"compat": "tao", "architectures": ["sm_89"]}
        assert load_spec(path).spec == spec

    def test_a_step_without_arguments_is_written_without_them(self, tmp_path: Path) -> None:
        """TAO would pass `args: null` on to the step as its argument."""
        spec = load_spec(None, ["dataset.train_dataset.args.pre_processes=[{type: A}, {type: B, args: [{c: 1}]}]"]).spec
        path = write_experiment(spec, tmp_path)
        written = yaml.safe_load(path.read_text("utf-8"))["dataset"]["train_dataset"]["args"]["pre_processes"]
        assert written == [{"type": "A"}, {"type": "B", "args": [{"c": 1}]}]
        assert load_spec(path).spec == spec


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


@pytest.mark.parametrize("value", ["{null: 1}", "[" * 5000, "9" * 5000], ids=lambda value: value[:12])
def test_a_value_that_is_no_yaml_of_ours_is_refused(value: str) -> None:
    assert re.search("cannot be read as YAML|must be a whole number", problem([f"gen_trt_engine.width={value}"]))


class TestResultsDir:
    @pytest.mark.parametrize(
        ("action", "overrides", "folder"),
        [
            ("evaluate", ["results_dir=/r"], "/r/trt_evaluate"),
            ("inference", ["results_dir=/r"], "/r/trt_inference"),
            ("gen_trt_engine", ["results_dir=/r"], "/r/gen_trt_engine"),
            ("gen_trt_engine", ["results_dir=/r", "gen_trt_engine.results_dir=/own"], "/own"),
            ("evaluate", ["evaluate.results_dir=/own"], "/own"),
            ("default_specs", ["results_dir=/r"], "/r"),
            ("train", ["results_dir=/r"], "/r/train"),
            ("retrain", ["results_dir=/r"], "/r/train"),
            ("retrain", ["results_dir=/r", "train.results_dir=/own"], "/own"),
            ("export", ["results_dir=/r"], "/r/export"),
            ("prune", ["results_dir=/r"], "/r/prune"),
            ("quantize", ["results_dir=/r"], "/r/quantize"),
            ("automl", ["results_dir=/r"], "/r/automl"),
            ("evaluate", ["results_dir=/r", "evaluate.checkpoint=a.pth"], "/r/evaluate"),
            ("evaluate", ["results_dir=/r", "evaluate.checkpoint=a.pth", "evaluate.trt_engine=a"], "/r/trt_evaluate"),
            ("inference", ["results_dir=/r", "inference.checkpoint=a.pth"], "/r/inference"),
        ],
    )
    def test_the_action_s_own_folder_takes_precedence(self, action: str, overrides: list[str], folder: str) -> None:
        assert results_dir(load_spec(None, overrides).spec, ACTIONS[action]) == Path(folder)

    def test_no_folder_is_refused(self) -> None:
        with pytest.raises(SpecError, match=r"set evaluate.results_dir or results_dir"):
            results_dir(Spec(), ACTIONS["evaluate"])
