# SPDX-License-Identifier: Apache-2.0
"""The contract's tables against literals and against every `config.pbtxt`, read as Triton reads it."""

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import ocdserve.contract
from ocdserve.contract import (
    ASKED_MODELS,
    CONTRACT_VERSION,
    DETECTING_MODELS,
    MODELS,
    READING_MODELS,
    InvalidInputError,
    OcdserveError,
    TensorSpec,
    UnavailableError,
)
from ocdserve.results.detections import Detections

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"

STEPS = ["ocdnet_preprocess", "ocdnet_network", "ocdnet_postprocess"]
# Each ensemble's steps.
ENSEMBLES = {
    "ocdnet": STEPS,
    "ocdnet_raw": STEPS,
    "ocr": [*STEPS, "ocrnet_recognise"],
    "ocr_raw": [*STEPS, "ocrnet_recognise"],
}
PYTHON_MODELS = ["ocdnet_fused", "ocr_fused", *STEPS, "ocrnet_recognise"]
IMAGE_MODELS = ["ocdnet_fused", "ocdnet_preprocess", "ocr_fused", "ocrnet_recognise"]

# The contract's table, name by name: (dtype, shape without the batch).
RESULTS = {
    "QUADS": ("FP32", (-1, 4, 2)),
    "SCORES": ("FP32", (-1,)),
    "COUNT": ("INT32", (1,)),
    "SIZE": ("INT32", (2,)),
    "POINTS": ("FP32", (-1, 2)),
    "POINT_COUNTS": ("INT32", (-1,)),
}
READINGS = {
    **RESULTS,
    "TEXTS": ("BYTES", (-1,)),
    "TEXT_SCORES": ("FP32", (-1,)),
    "WORD_TEXTS": ("BYTES", (-1,)),
    "WORD_SCORES": ("FP32", (-1,)),
    "WORD_QUADS": ("FP32", (-1, 4, 2)),
    "WORD_COUNTS": ("INT32", (-1,)),
}
INPUTS = {
    "ocdnet": {"IMAGE": ("BYTES", (1,))},
    "ocdnet_raw": {"PIXELS": ("UINT8", (-1, -1, 3))},
    "ocdnet_fused": {"IMAGE": ("BYTES", (1,))},
    "ocdnet_preprocess": {"IMAGE": ("BYTES", (1,)), "PIXELS": ("UINT8", (-1, -1, 3))},
    "ocdnet_network": {"NETWORK_IMAGE": ("UINT8", (-1, -1, 3)), "FRAME": ("INT32", (6,)), "CONTEXT": ("INT64", (-1,))},
    "ocdnet_postprocess": {"MAP": ("UINT8", (-1, -1)), "FRAME": ("INT32", (6,)), "CONTEXT": ("INT64", (-1,))},
    "ocr": {"IMAGE": ("BYTES", (1,))},
    "ocr_raw": {"PIXELS": ("UINT8", (-1, -1, 3))},
    "ocr_fused": {"IMAGE": ("BYTES", (1,))},
    "ocrnet_recognise": {
        "IMAGE": ("BYTES", (1,)),
        "PIXELS": ("UINT8", (-1, -1, 3)),
        "QUADS": ("FP32", (-1, 4, 2)),
        "SCORES": ("FP32", (-1,)),
        "COUNT": ("INT32", (1,)),
        "POINTS": ("FP32", (-1, 2)),
        "POINT_COUNTS": ("INT32", (-1,)),
        "CROPS": ("UINT8", (-1, -1, -1, 3)),
        "CROP_SIZES": ("INT32", (-1, 2)),
        "CONTEXT": ("INT64", (-1,)),
    },
}
OUTPUTS = {
    "ocdnet": RESULTS,
    "ocdnet_raw": RESULTS,
    "ocdnet_fused": RESULTS,
    "ocdnet_preprocess": {
        "NETWORK_IMAGE": ("UINT8", (-1, -1, 3)),
        "FRAME": ("INT32", (6,)),
        "SIZE": ("INT32", (2,)),
        "CONTEXT": ("INT64", (-1,)),
    },
    "ocdnet_network": {"MAP": ("UINT8", (-1, -1))},
    "ocdnet_postprocess": {name: spec for name, spec in RESULTS.items() if name != "SIZE"},
    "ocr": READINGS,
    "ocr_raw": READINGS,
    "ocr_fused": READINGS,
    "ocrnet_recognise": READINGS,
}
DTYPE_OF_TRITON = {"TYPE_STRING": "BYTES"}


def config(name: str) -> Any:
    text = (REPOSITORY / name / "config.pbtxt").read_text("utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def table(specs: tuple[TensorSpec, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {spec.name: (spec.dtype, spec.dims) for spec in specs}


def written_table(tensors: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    result = {}
    for tensor in tensors:
        name = model_config_pb2.DataType.Name(tensor.data_type)
        result[tensor.name] = (DTYPE_OF_TRITON.get(name, name.removeprefix("TYPE_")), tuple(tensor.dims))
    return result


def test_the_version_of_the_contract_is_1() -> None:
    assert CONTRACT_VERSION == 1


def test_the_models_are_those_of_the_design() -> None:
    assert set(MODELS) == set(INPUTS)
    assert [name for name, model in MODELS.items() if model.is_ensemble] == list(ENSEMBLES)
    assert DETECTING_MODELS == ("ocdnet", "ocdnet_raw", "ocdnet_fused")
    assert READING_MODELS == ("ocr", "ocr_raw", "ocr_fused")


def test_each_model_that_clients_ask_for_keeps_its_number_in_the_context() -> None:
    assert ASKED_MODELS == ("ocdnet", "ocdnet_raw", "ocdnet_fused", "ocr", "ocr_raw", "ocr_fused")


@pytest.mark.parametrize("name", INPUTS)
def test_the_tensors_of_a_model_are_those_of_the_design(name: str) -> None:
    assert table(MODELS[name].inputs) == INPUTS[name]
    assert table(MODELS[name].outputs) == OUTPUTS[name]


def test_only_the_inputs_of_preprocessing_and_of_reading_and_deadlines_are_optional() -> None:
    optional = {(name, spec.name) for name, model in MODELS.items() for spec in model.inputs if spec.optional}
    assert optional == {
        ("ocdnet_preprocess", "IMAGE"),
        ("ocdnet_preprocess", "PIXELS"),
        ("ocdnet_network", "CONTEXT"),
        ("ocdnet_postprocess", "CONTEXT"),
        *(("ocrnet_recognise", name) for name in INPUTS["ocrnet_recognise"]),
    }


def test_the_public_names_exist_and_are_sorted_as_exported() -> None:
    assert all(hasattr(ocdserve.contract, name) for name in ocdserve.contract.__all__)
    assert len(set(ocdserve.contract.__all__)) == len(ocdserve.contract.__all__)


def test_there_is_a_folder_for_each_model_and_no_other() -> None:
    assert sorted(path.name for path in REPOSITORY.iterdir()) == sorted(MODELS)


@pytest.mark.parametrize("name", INPUTS)
class TestEachConfig:
    def test_has_the_name_of_its_folder(self, name: str) -> None:
        assert config(name).name == name

    def test_lists_the_tensors_of_the_contract_in_order(self, name: str) -> None:
        written = config(name)
        assert list(written_table(written.input).items()) == list(table(MODELS[name].inputs).items())
        assert list(written_table(written.output).items()) == list(table(MODELS[name].outputs).items())

    def test_marks_the_same_inputs_optional(self, name: str) -> None:
        written = {tensor.name: tensor.optional for tensor in config(name).input}
        assert written == {spec.name: spec.optional for spec in MODELS[name].inputs}

    def test_batches_up_to_8(self, name: str) -> None:
        # With 0 Triton would never batch, and the shapes would have no batch dimension.
        assert config(name).max_batch_size == MODELS[name].max_batch_size == 8

    def test_has_a_version_folder(self, name: str) -> None:
        assert (REPOSITORY / name / "1").is_dir()


@pytest.mark.parametrize("name", PYTHON_MODELS)
class TestEachPythonModel:
    def test_is_run_by_the_python_backend_on_the_cpu(self, name: str) -> None:
        written = config(name)
        assert (written.backend, written.platform) == ("python", "")
        assert [group.kind for group in written.instance_group] == [model_config_pb2.ModelInstanceGroup.KIND_CPU]

    def test_batches_requests_of_any_size_without_a_delay(self, name: str) -> None:
        written = config(name)
        if name in IMAGE_MODELS:
            # A malformed IMAGE makes Triton refuse its whole batch.
            assert not written.HasField("dynamic_batching")
            return
        assert written.HasField("dynamic_batching")
        # A delay or a queue time-out costs every lone request; Triton 2.51 stalls 500 ms on the latter.
        assert written.dynamic_batching.max_queue_delay_microseconds == 0
        assert written.dynamic_batching.default_queue_policy.default_timeout_microseconds == 0
        assert written.dynamic_batching.priority_levels == 0
        assert all(tensor.allow_ragged_batch for tensor in written.input)

    def test_bounds_its_queue(self, name: str) -> None:
        if name in IMAGE_MODELS:
            assert config(name).parameters["queue_size"].string_value == "256"
            assert config(name).parameters["queue_time_ms"].string_value == "1000"
        else:
            # The first step bounds that of the ensemble; a limit of Triton's own makes it stall for 500 ms.
            assert not config(name).dynamic_batching.HasField("default_queue_policy")

    def test_has_a_short_model_file_that_only_names_the_class(self, name: str) -> None:
        source = (REPOSITORY / name / "1" / "model.py").read_text("utf-8")
        assert source.startswith("# SPDX-License-Identifier: Apache-2.0\n")
        assert len(source.splitlines()) < 40
        imports = [node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom)]
        assert [(node.module, [alias.asname for alias in node.names]) for node in imports] == [
            ("ocdserve.backend.triton", ["TritonPythonModel"])
        ]


def test_models_with_a_network_configure_its_runtime_and_those_with_images_their_queue() -> None:
    parameters = {name: sorted(config(name).parameters) for name in PYTHON_MODELS}
    assert parameters == {
        "ocdnet_fused": ["bundle", "queue_size", "queue_time_ms", "runtime", "streams", "threads"],
        "ocdnet_network": ["bundle", "runtime", "streams", "threads"],
        "ocdnet_preprocess": ["bundle", "queue_size", "queue_time_ms"],
        "ocdnet_postprocess": ["bundle"],
        "ocr_fused": ["bundle", "queue_size", "queue_time_ms", "recogniser", "runtime", "streams", "threads"],
        "ocrnet_recognise": ["queue_size", "queue_time_ms", "recogniser", "runtime", "streams", "threads"],
    }


@pytest.mark.parametrize("name", ENSEMBLES)
class TestEachEnsemble:
    def test_is_no_model_of_its_own(self, name: str) -> None:
        written = config(name)
        assert (written.platform, written.backend) == ("ensemble", "")
        # Triton refuses both on an ensemble, or ignores them.
        assert not written.HasField("dynamic_batching")
        assert not written.instance_group
        assert not any(tensor.allow_ragged_batch for tensor in written.input)

    def test_runs_its_steps_in_order(self, name: str) -> None:
        assert [step.model_name for step in config(name).ensemble_scheduling.step] == ENSEMBLES[name]

    def test_maps_tensors_that_the_steps_have(self, name: str) -> None:
        for step in config(name).ensemble_scheduling.step:
            model = MODELS[step.model_name]
            known = {spec.name for spec in model.inputs}
            required = {spec.name for spec in model.inputs if not spec.optional}
            assert required <= set(step.input_map) <= known
            assert set(step.output_map) <= {spec.name for spec in model.outputs}

    def test_feeds_each_step_only_what_was_produced_before(self, name: str) -> None:
        written = config(name)
        produced = {tensor.name for tensor in written.input}
        for step in written.ensemble_scheduling.step:
            assert set(step.input_map.values()) <= produced
            assert not set(step.output_map.values()) & produced, "a tensor has two producers"
            produced |= set(step.output_map.values())
        assert {tensor.name for tensor in written.output} <= produced

    def test_consumes_all_of_its_inputs(self, name: str) -> None:
        written = config(name)
        steps = written.ensemble_scheduling.step
        consumed = {value for step in steps for value in step.input_map.values()}
        assert {tensor.name for tensor in written.input} <= consumed
        unused = {value for step in steps for value in step.output_map.values()} - consumed
        assert unused == {tensor.name for tensor in written.output}

    def test_joins_tensors_of_one_type_and_shape(self, name: str) -> None:
        written = config(name)
        known = {**table(MODELS[name].inputs), **table(MODELS[name].outputs)}
        for step in written.ensemble_scheduling.step:
            model = MODELS[step.model_name]
            for maps, specs in ((step.input_map, table(model.inputs)), (step.output_map, table(model.outputs))):
                for tensor, joint in maps.items():
                    assert known.setdefault(joint, specs[tensor]) == specs[tensor]


class TestErrors:
    def test_bad_input_is_a_value_error_and_an_absent_server_is_not(self) -> None:
        assert issubclass(InvalidInputError, OcdserveError | ValueError)
        assert issubclass(InvalidInputError, ValueError)
        assert issubclass(InvalidInputError, OcdserveError)
        assert issubclass(UnavailableError, OcdserveError)
        assert not issubclass(UnavailableError, ValueError)


class TestDetections:
    QUAD = np.array([[[1, 2], [3, 2], [3, 4], [1, 4]]], np.float32)

    def test_to_dict_is_what_the_command_line_prints(self) -> None:
        found = Detections(self.QUAD, np.array([0.5], np.float32), 640, 480)
        assert len(found) == 1
        assert found.to_dict() == {
            "width": 640,
            "height": 480,
            "detections": [{"quad": [[1.0, 2.0], [3.0, 2.0], [3.0, 4.0], [1.0, 4.0]], "score": 0.5}],
        }

    def test_to_dict_carries_polygons_when_there_are_any(self) -> None:
        polygon = np.array([[1, 1], [2, 1], [2, 2]], np.float32)
        found = Detections(self.QUAD, np.array([0.5], np.float32), 640, 480, (polygon,))
        assert found.to_dict()["detections"][0]["polygon"] == [[1.0, 1.0], [2.0, 1.0], [2.0, 2.0]]

    def test_nothing_found_is_a_valid_answer(self) -> None:
        found = Detections(np.empty((0, 4, 2), np.float32), np.empty(0, np.float32), 7, 5, ())
        assert len(found) == 0
        assert found.to_dict() == {"width": 7, "height": 5, "detections": []}
