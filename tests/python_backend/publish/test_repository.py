# SPDX-License-Identifier: Apache-2.0
import errno
import json
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import bars_recogniser
import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from ocdserve.backend import Bundle, DetectorSpec, PostprocessParams
from ocdserve.backend.publish.repository import PublishOptions, publish, template_repository
from ocdserve.backend.publish.tuning import Tuning
from ocdserve.backend.spec.bundle import RecogniserBundle
from ocdserve.backend.spec.recogniser_spec import RecogniserSpec
from ocdserve.contract import InvalidInputError, Limits, UnavailableError

MODELS = ["ocdnet", "ocdnet_raw", "ocdnet_fused", "ocdnet_preprocess", "ocdnet_network", "ocdnet_postprocess"]
PYTHON_MODELS = ["ocdnet_fused", "ocdnet_preprocess", "ocdnet_network", "ocdnet_postprocess"]
IMAGE_MODELS = ("ocdnet_fused", "ocdnet_preprocess")


def config(path: Path) -> Any:
    return text_format.Parse(path.read_text("utf-8"), model_config_pb2.ModelConfig())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestPublish:
    def test_every_model_is_there_with_its_version(self, bundle: Path, tmp_path: Path) -> None:
        repository = publish(PublishOptions(tmp_path / "models", bundle))
        assert repository == tmp_path / "models"
        assert sorted(path.name for path in repository.iterdir()) == sorted(MODELS)
        assert all((repository / name / "1").is_dir() for name in MODELS)
        assert [name for name in MODELS if (repository / name / "1" / "model.py").is_file()] == [
            name for name in MODELS if name in PYTHON_MODELS
        ]

    @pytest.mark.parametrize(
        "error",
        [
            OSError(28, "No space left on device"),
            shutil.Error([("from", "to", "No space left on device"), ("a", "b", "another")]),
        ],
    )
    def test_a_full_disk_is_reported_and_leaves_what_was_there(
        self, error: OSError, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise error

        publish(PublishOptions(tmp_path / "old", bundle))
        before = contents(tmp_path / "old")
        monkeypatch.setattr(Bundle, "save", full)
        for name in ("old", "new"):
            with pytest.raises(InvalidInputError, match=f"cannot write the model repository .*{name}': No space left"):
                publish(PublishOptions(tmp_path / name, bundle))
        assert contents(tmp_path / "old") == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "old"]

    def test_too_little_room_is_refused_before_anything_is_written(self, bundle: Path, tmp_path: Path) -> None:
        # It takes no room, but a copy would.
        with (bundle / "network.onnx").open("r+b") as file:
            file.truncate(1 << 43)
        with pytest.raises(
            UnavailableError, match=r"has [\d,]+ bytes free, too few for the model repository \(8,79\d,"
        ):
            publish(PublishOptions(tmp_path / "absent" / "repository", bundle))
        assert not (tmp_path / "absent").exists()

    def test_every_config_says_what_the_template_says_but_for_its_parameters(
        self, bundle: Path, tmp_path: Path
    ) -> None:
        repository = publish(PublishOptions(tmp_path / "models", bundle, "onnxruntime", threads=2, streams=2))
        for name in MODELS:
            published, template = (
                config(folder / name / "config.pbtxt") for folder in (repository, template_repository())
            )
            assert sorted(published.parameters) == sorted({*template.parameters, "generation"})
            for each in (published, template):
                each.ClearField("parameters")
            assert published == template

    def test_parameters_say_which_bundle_and_how_to_run_it(self, bundle: Path, tmp_path: Path) -> None:
        repository = publish(PublishOptions(tmp_path / "models", bundle, "onnxruntime", threads=2, streams=2))
        for name in PYTHON_MODELS:
            parameters = config(repository / name / "config.pbtxt").parameters
            values = {key: parameters[key].string_value for key in parameters}
            assert values.pop("bundle") == "bundle"
            assert values.pop("generation") == Bundle.load(bundle).digest()
            assert values.pop("queue_size", None) == ("256" if name in IMAGE_MODELS else None)
            assert values.pop("queue_time_ms", None) == ("1000" if name in IMAGE_MODELS else None)
            if name in ("ocdnet_fused", "ocdnet_network"):
                assert values == {"runtime": "onnxruntime", "threads": "2", "streams": "2"}
            else:
                assert values == {}

    def test_limits_other_than_the_default_are_parameters_of_all_models_in_python(
        self, bundle: Path, tmp_path: Path
    ) -> None:
        limits = Limits(max_side=20_000, max_parameters=9)
        repository = publish(PublishOptions(tmp_path / "models", bundle, limits=limits))
        for name in MODELS:
            parameters = config(repository / name / "config.pbtxt").parameters
            values = {key: parameters[key].string_value for key in parameters if key.startswith("max_")}
            assert values == ({"max_side": "20000", "max_parameters": "9"} if name in PYTHON_MODELS else {})
            assert Limits.parse(values) == (limits if name in PYTHON_MODELS else Limits())

    def test_the_ensemble_names_the_thresholds_of_its_detector(self, bundle: Path, tmp_path: Path) -> None:
        own = DetectorSpec(model="network.onnx", postprocess=PostprocessParams(box_thresh=0.45, polygons=True))
        (bundle / "detector.json").write_text(own.to_json())
        repository = publish(PublishOptions(tmp_path / "models", bundle))
        parameters = config(repository / "ocdnet" / "config.pbtxt").parameters
        assert json.loads(parameters["request_defaults"].string_value) == {
            "thresh": 0.3,
            "box_thresh": 0.45,
            "unclip_ratio": 1.5,
            "max_candidates": 1000,
            "min_size": 3,
            "polygons": False,  # computed for the requests that ask
        }

    def test_the_ensembles_name_the_detector_by_all_that_decides_on_its_answers(
        self, bundle: Path, tmp_path: Path
    ) -> None:
        def generation() -> str:
            repository = publish(PublishOptions(tmp_path / "models", bundle))
            first, second = (
                config(repository / name / "config.pbtxt").parameters["generation"].string_value
                for name in ("ocdnet", "ocdnet_raw")
            )
            assert first == second and re.fullmatch("[0-9a-f]{16}", first)
            return first

        seen = [generation(), generation()]
        assert seen[0] == seen[1]
        (bundle / "network.onnx").write_bytes((bundle / "network.onnx").read_bytes() + b"\0")
        seen.append(generation())
        (bundle / "detector.json").write_text((bundle / "detector.json").read_text().replace("0.3", "0.31"))
        seen.append(generation())
        assert len(set(seen)) == 3

    def test_without_options_the_server_chooses(self, bundle: Path, tmp_path: Path) -> None:
        repository = publish(PublishOptions(tmp_path / "models", bundle))
        parameters = config(repository / "ocdnet_fused" / "config.pbtxt").parameters
        values = {key: parameters[key].string_value for key in ("runtime", "threads", "streams")}
        assert values == {"runtime": "", "threads": "0", "streams": "1"}

    def test_instances_are_those_of_the_models_with_the_network_and_queues_those_of_all(
        self, bundle: Path, tmp_path: Path
    ) -> None:
        options = PublishOptions(
            tmp_path / "models", bundle, instances=3, queue_size=40, queue_delay_us=500, queue_time_ms=250
        )
        repository = publish(options)
        configs = {name: config(repository / name / "config.pbtxt") for name in PYTHON_MODELS}
        counts = {name: [group.count for group in one.instance_group] for name, one in configs.items()}
        assert counts == {
            "ocdnet_fused": [3],
            "ocdnet_network": [3],
            "ocdnet_preprocess": [1],
            "ocdnet_postprocess": [1],
        }
        for name in ("ocdnet_network", "ocdnet_postprocess"):
            assert configs[name].dynamic_batching.max_queue_delay_microseconds == 500
        # Queues of their own: one in each process.
        queues = {name: configs[name].parameters["queue_size"].string_value for name in IMAGE_MODELS}
        assert queues == {"ocdnet_fused": "14", "ocdnet_preprocess": "40"}
        times = {name: configs[name].parameters["queue_time_ms"].string_value for name in IMAGE_MODELS}
        assert times == {"ocdnet_fused": "250", "ocdnet_preprocess": "250"}
        assert not any(configs[name].HasField("dynamic_batching") for name in IMAGE_MODELS)

    def test_a_tuning_is_published_as_its_options_are(self, bundle: Path, tmp_path: Path) -> None:
        tuning = Tuning(
            "onnxruntime", threads=2, streams=2, instances=3, queue_size=40, queue_delay_us=500, queue_time_ms=9
        )
        assert PublishOptions.tuned(tmp_path, bundle, tuning) == PublishOptions(
            tmp_path, bundle, "onnxruntime", 2, 2, instances=3, queue_size=40, queue_delay_us=500, queue_time_ms=9
        )

    def test_the_bundle_inside_is_the_bundle_given(self, bundle: Path, tmp_path: Path) -> None:
        repository = publish(PublishOptions(tmp_path / "models", bundle))
        inside = contents(repository / "ocdnet_network" / "bundle")
        assert json.loads(inside.pop("manifest.json"))["sha256"].keys() == inside.keys()
        assert inside == contents(bundle)
        assert Bundle.load(repository / "ocdnet_network" / "bundle").spec.name == "mine"

    def test_the_default_bundle_is_published_with_its_weights(self, tmp_path: Path) -> None:
        repository = publish(PublishOptions(tmp_path / "models"))
        assert Bundle.load(repository / "ocdnet_network" / "bundle").sha256() == Bundle.load().sha256()

    def test_nothing_inside_refers_to_the_outside(self, bundle: Path, tmp_path: Path) -> None:
        repository = publish(PublishOptions(tmp_path / "models", bundle))
        assert not [path for path in repository.rglob("*") if path.is_symlink()]
        assert not [name for name, data in contents(repository).items() if str(tmp_path).encode() in data]
        moved = repository.rename(tmp_path / "moved")
        parameters = config(moved / "ocdnet_fused" / "config.pbtxt").parameters
        assert Bundle.load(moved / "ocdnet_fused" / parameters["bundle"].string_value).spec.name == "mine"

    def test_no_folder_is_empty_since_object_stores_have_no_empty_ones(self, bundle: Path, tmp_path: Path) -> None:
        repository = publish(PublishOptions(tmp_path / "models", bundle))
        assert not [path for path in repository.rglob("*") if path.is_dir() and not any(path.iterdir())]

    def test_each_model_has_its_own_copy_of_what_it_needs(self, bundle: Path, tmp_path: Path) -> None:
        repository = publish(PublishOptions(tmp_path / "models", bundle))
        whole = contents(repository / "ocdnet_network" / "bundle")
        assert contents(repository / "ocdnet_fused" / "bundle") == whole
        for name in ("ocdnet_preprocess", "ocdnet_postprocess"):
            inside = contents(repository / name / "bundle")
            assert inside.keys() == {"detector.json", "manifest.json"}
            assert inside["detector.json"] == whole["detector.json"]
            alone = shutil.copytree(repository / name, tmp_path / "alone" / name)
            assert Bundle.load(alone / "bundle", require_manifest=True, spec_only=True).spec.name == "mine"
            with pytest.raises(InvalidInputError, match="is not next to it"):
                Bundle.load(alone / "bundle")
        # The network takes its room once.
        network, fused = (repository / name / "bundle" / "network.onnx" for name in ("ocdnet_network", "ocdnet_fused"))
        assert network.samefile(fused)

    def test_an_empty_folder_is_filled(self, bundle: Path, tmp_path: Path) -> None:
        (tmp_path / "models").mkdir()
        assert len(list(publish(PublishOptions(tmp_path / "models", bundle)).iterdir())) == len(MODELS)

    @pytest.mark.parametrize("reason", [errno.EXDEV, errno.EROFS, errno.EACCES])
    def test_the_root_of_a_mounted_volume_is_filled(
        self, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int
    ) -> None:
        repository = tmp_path / "models"
        repository.mkdir()

        def refuse(*arguments: Any) -> Any:
            raise OSError(reason, "this is another file system")

        rename, make = Path.rename, tempfile.mkdtemp
        if reason == errno.EXDEV:
            monkeypatch.setattr(
                Path, "rename", lambda path, to: (rename if repository in path.parents else refuse)(path, to)
            )
        else:
            monkeypatch.setattr(tempfile, "mkdtemp", lambda *at: (make if Path(at[-1]) == repository else refuse)(*at))
        for _ in range(2):
            publish(PublishOptions(repository, bundle))
            assert sorted(path.name for path in repository.iterdir()) == sorted(MODELS)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "models"]


class TestPublishAgain:
    def test_the_second_publication_replaces_the_first(self, bundle: Path, tmp_path: Path) -> None:
        repository = publish(PublishOptions(tmp_path / "models", bundle, threads=2))
        (repository / "ocdnet_fused" / "1" / "left_over.py").write_text("")
        publish(PublishOptions(tmp_path / "models", bundle))
        publish(PublishOptions(tmp_path / "fresh", bundle))
        assert contents(repository) == contents(tmp_path / "fresh")

    def test_the_published_bundle_itself_can_be_published_again(self, bundle: Path, tmp_path: Path) -> None:
        repository = publish(PublishOptions(tmp_path / "models", bundle))
        before = contents(repository)
        publish(PublishOptions(repository, repository / "ocdnet_network" / "bundle"))
        assert contents(repository) == before

    def test_a_bundle_that_cannot_be_read_leaves_the_earlier_publication(self, bundle: Path, tmp_path: Path) -> None:
        repository = publish(PublishOptions(tmp_path / "models", bundle))
        before = contents(repository)
        (bundle / "network.onnx").unlink()
        with pytest.raises(InvalidInputError, match=r"network\.onnx"):
            publish(PublishOptions(repository, bundle))
        assert contents(repository) == before

    def test_other_models_of_the_repository_stay_as_they_are(self, bundle: Path, tmp_path: Path) -> None:
        other = tmp_path / "models" / "resnet"
        (other / "1").mkdir(parents=True)
        (other / "config.pbtxt").write_text('name: "resnet"')
        (other / "1" / "model.plan").write_bytes(b"an engine")
        before = contents(other)
        for _ in range(2):
            repository = publish(PublishOptions(tmp_path / "models", bundle))
            assert contents(other) == before
            assert {path.name for path in repository.iterdir()} == {"resnet", *MODELS}

    @pytest.mark.parametrize("failing", range(2 * len(MODELS)))
    def test_a_failure_between_two_models_leaves_the_earlier_publication(
        self, bundle: Path, tmp_path: Path, failing: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        repository = publish(PublishOptions(tmp_path / "models", bundle, threads=2))
        before = contents(repository)
        rename, moved = Path.rename, []

        def failing_rename(path: Path, target: Path) -> Path:
            moved.append(target)
            if len(moved) == failing + 1:
                raise OSError(errno.EIO, "Input/output error")
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", failing_rename)
        with pytest.raises(InvalidInputError, match=r"cannot write the model repository .*: Input/output error"):
            publish(PublishOptions(repository, bundle))
        assert contents(repository) == before
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".models")] == []


class TestRefused:
    def test_a_folder_with_something_else_in_it_stays_as_it_is(self, bundle: Path, tmp_path: Path) -> None:
        foreign = tmp_path / "models"
        foreign.mkdir()
        (foreign / "thesis.txt").write_text("three years of work")
        with pytest.raises(
            InvalidInputError, match=r"models holds thesis\.txt and is no model repository; publish into an empty"
        ):
            publish(PublishOptions(foreign, bundle))
        assert contents(foreign) == {"thesis.txt": b"three years of work"}

    def test_a_model_of_the_same_name_that_is_not_ours_stays_as_it_is(self, bundle: Path, tmp_path: Path) -> None:
        own = tmp_path / "models" / "ocdnet" / "1"
        own.mkdir(parents=True)
        (own / "model.plan").write_bytes(b"an engine that took an hour to build")
        with pytest.raises(InvalidInputError, match="ocdnet"):
            publish(PublishOptions(tmp_path / "models", bundle))
        assert contents(tmp_path / "models") == {"ocdnet/1/model.plan": b"an engine that took an hour to build"}

    @pytest.mark.parametrize("file", ["ocdnet", "ocdnet/notes.txt"])
    def test_files_in_the_place_of_a_model_stay_as_they_are(self, bundle: Path, tmp_path: Path, file: str) -> None:
        path = tmp_path / "models" / file
        path.parent.mkdir(parents=True)
        path.write_text("of somebody")
        with pytest.raises(InvalidInputError, match="models/ocdnet holds a model that ocdserve did not write"):
            publish(PublishOptions(tmp_path / "models", bundle))
        assert contents(tmp_path / "models") == {file: b"of somebody"}

    def test_an_ensemble_of_the_same_name_that_is_not_ours_stays_as_it_is(self, bundle: Path, tmp_path: Path) -> None:
        own = tmp_path / "models" / "ocdnet"
        own.mkdir(parents=True)
        (own / "config.pbtxt").write_text('name: "ocdnet" platform: "ensemble"')
        with pytest.raises(InvalidInputError, match="ocdnet holds a model that ocdserve did not write"):
            publish(PublishOptions(tmp_path / "models", bundle))
        assert contents(tmp_path / "models") == {"ocdnet/config.pbtxt": b'name: "ocdnet" platform: "ensemble"'}

    def test_a_file_is_no_folder(self, bundle: Path, tmp_path: Path) -> None:
        (tmp_path / "models").write_text("")
        with pytest.raises(InvalidInputError, match=r"models is a file\. Name a folder"):
            publish(PublishOptions(tmp_path / "models", bundle))

    def test_no_bundle_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match="is no bundle"):
            publish(PublishOptions(tmp_path / "models", tmp_path / "nowhere"))
        assert not (tmp_path / "models").exists()

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"runtime": "caffe"}, "runtime must be one of openvino, onnxruntime, tensorrt, .*; got 'caffe'"),
            ({"threads": -1}, "threads must be at least 1; got -1"),
            ({"threads": 1, "streams": 2}, "streams must be from 1 to the 1 threads; got 2"),
        ],
    )
    def test_a_bad_option_is_refused_by_name_rule_and_value(
        self, values: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(InvalidInputError, match=message):
            PublishOptions(tmp_path / "models", **values)


def test_the_templates_are_found() -> None:
    assert {path.name for path in template_repository().iterdir()} == {
        *MODELS,
        "ocr",
        "ocr_raw",
        "ocr_fused",
        "ocrnet_recognise",
    }


class TestTensorRtPlan:
    @pytest.fixture
    def engine_bundle(self, bundle: Path) -> Path:
        spec = DetectorSpec(name="mine", model="network.onnx", engine="model.plan", runtime="tensorrt")
        (bundle / "detector.json").write_text(spec.to_json())
        (bundle / "model.plan").write_bytes(b"engine")
        return bundle

    def test_the_engine_replaces_the_network(self, engine_bundle: Path, tmp_path: Path) -> None:
        repository = publish(PublishOptions(tmp_path / "models", engine_bundle, network="tensorrt_plan"))
        assert (repository / "ocdnet_network" / "1" / "model.plan").read_bytes() == b"engine"
        assert not (repository / "ocdnet_network" / "1" / "model.py").exists()
        network = config(repository / "ocdnet_network" / "config.pbtxt")
        assert (network.platform, network.backend, len(network.parameters)) == ("tensorrt_plan", "", 0)
        assert [(tensor.name, tensor.allow_ragged_batch) for tensor in network.input] == [("NETWORK_IMAGE", False)]
        assert [tensor.name for tensor in network.output] == ["MAP"]
        assert [group.kind for group in network.instance_group] == [1]  # KIND_GPU

    def test_the_names_are_those_of_the_folded_network(self) -> None:
        from ocdserve.backend.network.rewrite.fold import INPUT, OUTPUT

        assert (INPUT, OUTPUT) == ("NETWORK_IMAGE", "MAP")

    def test_the_ensembles_pass_no_frame_to_it(self, engine_bundle: Path, tmp_path: Path) -> None:
        repository = publish(PublishOptions(tmp_path / "models", engine_bundle, network="tensorrt_plan"))
        for name in ("ocdnet", "ocdnet_raw"):
            steps = {
                step.model_name: step for step in config(repository / name / "config.pbtxt").ensemble_scheduling.step
            }
            assert list(steps["ocdnet_network"].input_map) == ["NETWORK_IMAGE"]
            assert {"FRAME", "CONTEXT"} <= set(steps["ocdnet_postprocess"].input_map)

    def test_the_fused_model_is_left_out_and_comes_back(self, engine_bundle: Path, tmp_path: Path) -> None:
        target = tmp_path / "models"
        publish(PublishOptions(target, engine_bundle, network="tensorrt_plan"))
        assert sorted(path.name for path in target.iterdir()) == sorted(set(MODELS) - {"ocdnet_fused"})
        publish(PublishOptions(target, engine_bundle, runtime="onnxruntime"))
        assert sorted(path.name for path in target.iterdir()) == sorted(MODELS)
        assert not (target / "ocdnet_network" / "1" / "model.plan").exists()

    def test_a_bundle_without_an_engine_is_refused(self, bundle: Path, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match="holds no TensorRT engine"):
            publish(PublishOptions(tmp_path / "models", bundle, network="tensorrt_plan"))

    def test_an_engine_of_tensorrt_rtx_is_refused(self, engine_bundle: Path, tmp_path: Path) -> None:
        spec = DetectorSpec(model="network.onnx", engine="model.plan", runtime="tensorrt-rtx")
        (engine_bundle / "detector.json").write_text(spec.to_json())
        with pytest.raises(InvalidInputError, match="made for tensorrt-rtx"):
            publish(PublishOptions(tmp_path / "models", engine_bundle, network="tensorrt_plan"))

    def test_python_does_not_replace_an_engine_by_default(self, engine_bundle: Path, tmp_path: Path) -> None:
        with pytest.raises(UnavailableError, match=r"built for tensorrt, .* --gpu .* --runtime openvino"):
            publish(PublishOptions(tmp_path / "models", engine_bundle))
        assert not (tmp_path / "models").exists()
        publish(PublishOptions(tmp_path / "models", engine_bundle, runtime="onnxruntime"))

    def test_an_unknown_platform_is_refused(self, bundle: Path, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match="network must be one of python, tensorrt_plan; got 'onnx'"):
            PublishOptions(tmp_path / "models", bundle, network="onnx")  # type: ignore[arg-type]


class TestGpu:
    @pytest.fixture
    def engine_bundle(self, bundle: Path) -> Path:
        spec = DetectorSpec(name="mine", model="network.onnx", engine="model.plan", runtime="tensorrt")
        (bundle / "detector.json").write_text(spec.to_json())
        (bundle / "model.plan").write_bytes(b"engine")
        return bundle

    def test_every_python_model_has_an_instance_on_each_gpu_and_takes_tensors_there(
        self, engine_bundle: Path, tmp_path: Path
    ) -> None:
        repository = publish(PublishOptions(tmp_path / "models", engine_bundle, gpu=True))
        for name in PYTHON_MODELS:
            published = config(repository / name / "config.pbtxt")
            assert [(group.kind, group.count, list(group.gpus)) for group in published.instance_group] == [(1, 1, [])]
            values = {key: published.parameters[key].string_value for key in published.parameters}
            assert values.pop("bundle") == "bundle"
            assert values.pop("generation") == Bundle.load(engine_bundle).digest()
            expected = {"gpu": "true", "slots": "2", "decoder": "cpu", "FORCE_CPU_ONLY_INPUT_TENSORS": "no"}
            if name in ("ocdnet_fused", "ocdnet_network"):
                expected |= {"runtime": "tensorrt", "threads": "0"}
            if name in IMAGE_MODELS:
                expected |= {"queue_size": "256", "queue_time_ms": "1000"}
            if name == "ocdnet_fused":
                expected |= {"queue_delay_us": "0"}
            assert values == expected
        assert (repository / "ocdnet_network" / "bundle" / "model.plan").read_bytes() == b"engine"

    def test_all_but_instances_and_parameters_is_as_on_the_cpu(self, bundle: Path, tmp_path: Path) -> None:
        on_gpu = publish(PublishOptions(tmp_path / "gpu", bundle, gpu=True))
        on_cpu = publish(PublishOptions(tmp_path / "cpu", bundle))
        for name in MODELS:
            ours, theirs = (config(folder / name / "config.pbtxt") for folder in (on_gpu, on_cpu))
            for each in (ours, theirs):
                each.ClearField("parameters")
                each.ClearField("instance_group")
            assert ours == theirs

    def test_options_reach_the_models(self, bundle: Path, tmp_path: Path) -> None:
        options = PublishOptions(tmp_path / "models", bundle, "onnxruntime-cuda", threads=4, streams=3, gpu=True)
        parameters = config(publish(options) / "ocdnet_fused" / "config.pbtxt").parameters
        values = {key: parameters[key].string_value for key in ("runtime", "threads", "slots")}
        assert values == {"runtime": "onnxruntime-cuda", "threads": "4", "slots": "3"}

    def test_an_engine_may_stand_between_the_steps(self, engine_bundle: Path, tmp_path: Path) -> None:
        repository = publish(PublishOptions(tmp_path / "models", engine_bundle, network="tensorrt_plan", gpu=True))
        network, after = (
            config(repository / name / "config.pbtxt") for name in ("ocdnet_network", "ocdnet_postprocess")
        )
        assert (network.platform, len(network.parameters)) == ("tensorrt_plan", 0)
        assert after.parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value == "no"

    @pytest.mark.parametrize(
        ("runtime", "gpu", "message"),
        [
            ("openvino", True, r"the runtime openvino computes on the CPU; publish without --gpu"),
            ("tensorrt", False, r"the runtime tensorrt computes on the GPU; publish with --gpu"),
        ],
    )
    def test_a_runtime_of_the_other_kind_is_refused(
        self, runtime: str, gpu: bool, message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(InvalidInputError, match=message):
            PublishOptions(tmp_path / "models", runtime=runtime, gpu=gpu)

    @pytest.mark.parametrize(
        ("decoder", "gpu", "message"),
        [("gpu", False, r"the decoder gpu needs a GPU; publish with --gpu"), ("tpu", True, r"one of auto, cpu, gpu")],
    )
    def test_a_decoder_that_does_not_fit_is_refused(
        self, decoder: str, gpu: bool, message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(InvalidInputError, match=message):
            PublishOptions(tmp_path / "models", gpu=gpu, decoder=decoder)

    def test_a_bundle_without_the_engine_is_refused_before_anything_is_written(
        self, bundle: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(InvalidInputError, match=r"holds no engine of tensorrt\. Build one"):
            publish(PublishOptions(tmp_path / "models", bundle, "tensorrt", gpu=True))
        assert not (tmp_path / "models").exists()


class TestWithARecogniser:
    """With the recogniser of coloured bars."""

    @pytest.fixture
    def recogniser(self, tmp_path: Path) -> Path:
        onnx.save(bars_recogniser.network(), tmp_path / "bars.onnx")
        spec = RecogniserSpec(model="bars.onnx", characters=tuple(bars_recogniser.LETTERS), min_text_score=0.25)
        return RecogniserBundle(spec, tmp_path / "bars.onnx").save(tmp_path / "recogniser").model_path.parent

    def test_the_models_that_read_are_published_too(self, bundle: Path, recogniser: Path, tmp_path: Path) -> None:
        options = PublishOptions(tmp_path / "models", bundle, threads=2, instances=2, recogniser=recogniser)
        repository = publish(options)
        more = ["ocr", "ocr_fused", "ocr_raw", "ocrnet_recognise"]
        assert sorted(path.name for path in repository.iterdir()) == sorted([*MODELS, *more])
        for name in ("ocr_fused", "ocrnet_recognise"):
            assert RecogniserBundle.load(repository / name / "recogniser").digest() == (
                RecogniserBundle.load(recogniser).digest()
            )
            written = config(repository / name / "config.pbtxt")
            assert written.parameters["threads"].string_value == "2"
            assert written.parameters["queue_size"].string_value == "128"
            assert written.instance_group[0].count == 2
        assert (repository / "ocr_fused" / "bundle" / "detector.json").is_file()
        defaults = json.loads(config(repository / "ocr" / "config.pbtxt").parameters["request_defaults"].string_value)
        assert (defaults["min_text_score"], defaults["words"], defaults["direction"]) == (0.25, False, True)

    def test_all_models_are_of_one_generation_and_another_recogniser_is_another(
        self, bundle: Path, recogniser: Path, tmp_path: Path
    ) -> None:
        repository = publish(PublishOptions(tmp_path / "models", bundle, recogniser=recogniser))
        written = {config(path).parameters["generation"].string_value for path in repository.glob("*/config.pbtxt")}
        assert len(written) == 1
        assert written.isdisjoint({Bundle.load(bundle).digest(), RecogniserBundle.load(recogniser).digest()})
        spec = RecogniserBundle.load(recogniser).spec
        (recogniser / "manifest.json").unlink()
        (recogniser / "recogniser.json").write_text(replace(spec, min_text_score=0.5).to_json(), "utf-8")
        publish(PublishOptions(tmp_path / "models", bundle, recogniser=recogniser))
        again = {config(path).parameters["generation"].string_value for path in repository.glob("*/config.pbtxt")}
        assert len(again) == 1 and again != written

    def test_without_it_they_go_and_the_repository_is_as_if_they_had_never_been(
        self, bundle: Path, recogniser: Path, tmp_path: Path
    ) -> None:
        repository = publish(PublishOptions(tmp_path / "models", bundle, recogniser=recogniser))
        publish(PublishOptions(repository, bundle))
        assert contents(repository) == contents(publish(PublishOptions(tmp_path / "others", bundle)))

    def test_models_of_others_under_these_names_stay_unless_there_is_one(
        self, bundle: Path, recogniser: Path, tmp_path: Path
    ) -> None:
        model = tmp_path / "models" / "ocr"
        (model / "1").mkdir(parents=True)
        (model / "config.pbtxt").write_text('name: "ocr"\nbackend: "onnxruntime"\n')
        (model / "1" / "model.onnx").touch()
        before = contents(model)
        publish(PublishOptions(tmp_path / "models", bundle))
        assert contents(model) == before
        with pytest.raises(InvalidInputError, match="ocr holds a model that ocdserve did not write"):
            publish(PublishOptions(tmp_path / "models", bundle, recogniser=recogniser))

    def test_on_a_gpu_each_network_has_its_own_runtime(self, bundle: Path, recogniser: Path, tmp_path: Path) -> None:
        repository = publish(PublishOptions(tmp_path / "models", bundle, gpu=True, recogniser=recogniser))
        found = {
            name: {key: config(repository / name / "config.pbtxt").parameters[key].string_value for key in keys}
            for name in ("ocr_fused", "ocrnet_recognise")
            for keys in [("gpu", "runtime", "FORCE_CPU_ONLY_INPUT_TENSORS")]
        }
        assert found == {
            "ocr_fused": {"gpu": "true", "runtime": "", "FORCE_CPU_ONLY_INPUT_TENSORS": "no"},
            # Its images and lines are cut out on the host.
            "ocrnet_recognise": {"gpu": "true", "runtime": "onnxruntime-cuda", "FORCE_CPU_ONLY_INPUT_TENSORS": "yes"},
        }
