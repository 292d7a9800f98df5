# SPDX-License-Identifier: Apache-2.0
import re
from collections.abc import Iterator

import bars_recogniser
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from ocdserve.backend.network.rewrite.fold_recogniser import fold_recogniser
from ocdserve.backend.spec.recogniser_spec import RecogniserNetworkSpec, RecogniserSpec
from ocdserve.backend.stages.ctc import best_steps
from ocdserve.contract import InvalidInputError


def run(model: onnx.ModelProto, lines: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"LINES": lines})  # type: ignore[no-any-return]


def ends(model: onnx.ModelProto) -> Iterator[tuple[str, int, list[int | str]]]:
    for value in (*model.graph.input, *model.graph.output):
        tensor = value.type.tensor_type
        yield value.name, tensor.elem_type, [dim.dim_value or dim.dim_param for dim in tensor.shape.dim]


class TestFoldRecogniser:
    # The opset decides how the axes of a reduction are given.
    @pytest.mark.parametrize("opset", [13, 17])
    def test_the_class_of_every_step_and_its_probability(self, opset: int) -> None:
        folded = fold_recogniser(bars_recogniser.network(opset=opset), RecogniserNetworkSpec())
        onnx.checker.check_model(folded)
        assert list(ends(folded)) == [
            ("LINES", TensorProto.UINT8, ["batch", 48, "width", 3]),
            ("CLASSES", TensorProto.INT32, ["batch", "steps"]),
            ("PROBABILITIES", TensorProto.FLOAT, ["batch", "steps"]),
        ]
        lines = np.stack([bars_recogniser.line("rgb"), bars_recogniser.line("bbr")])
        classes, probabilities = run(folded, lines)
        assert classes.tolist() == [[0, 1, 1, 0, 2, 2, 0, 3, 3, 0], [0, 3, 3, 0, 3, 3, 0, 1, 1, 0]]
        # e^13 or e^10 of the chosen class against 1, or e^3 of the blank, for each of the others.
        assert probabilities[0, 0] == pytest.approx(1 / (1 + 3 * np.exp(-13)), abs=1e-6)
        assert probabilities[0, 1] == pytest.approx(1 / (1 + (np.exp(3) + 2) * np.exp(-10)), abs=1e-6)

    def test_logits_become_probabilities(self) -> None:
        lines = bars_recogniser.line("rgb")[None]
        expected = run(fold_recogniser(bars_recogniser.network(), RecogniserNetworkSpec()), lines)
        folded = fold_recogniser(bars_recogniser.network("logits"), RecogniserNetworkSpec(scores="logits"))
        for found, each in zip(run(folded, lines), expected, strict=True):
            assert found.tolist() == each.tolist()

    def test_a_space_is_read_where_the_blank_is_only_a_little_likelier(self) -> None:
        model = bars_recogniser.network(characters=("r", "g", "b", " "), classes=5)
        # Between letters the space has e^11 where the blank has e^13: a probability of 0.12.
        values = {item.name: item for item in model.graph.initializer}
        head, bias = (onnx.numpy_helper.to_array(values[name]).copy() for name in ("head_w", "head_b"))
        head[4], bias[4] = head[0], bias[0] - 2
        values["head_w"].CopyFrom(onnx.numpy_helper.from_array(head, "head_w"))
        values["head_b"].CopyFrom(onnx.numpy_helper.from_array(bias, "head_b"))
        lines = bars_recogniser.line("rgb")[None]
        (scores,) = run(fold_recogniser(model, RecogniserNetworkSpec(), reduced=False), lines)
        for threshold, between in ((0.1, 4), (0.13, 0)):
            spec = RecogniserSpec(characters=("r", "g", "b", " "), space_threshold=threshold)
            classes, probabilities = run(fold_recogniser(model, spec.network, space=spec.space), lines)
            b = between
            assert classes.tolist() == [[b, 1, 1, b, 2, 2, b, 3, 3, b]]
            expected = best_steps(scores[0], spec)
            assert classes[0].tolist() == expected.classes.tolist()
            assert probabilities[0].tolist() == expected.probabilities.tolist()

    def test_all_classes_for_a_runtime_that_finds_the_largest_elsewhere(self) -> None:
        folded = fold_recogniser(bars_recogniser.network(width=80, batch=1), RecogniserNetworkSpec(), reduced=False)
        onnx.checker.check_model(folded)
        (found,) = run(folded, bars_recogniser.line("rgb")[None])
        assert found.shape == (1, 10, 4)
        assert found[0].argmax(axis=1).tolist() == [0, 1, 1, 0, 2, 2, 0, 3, 3, 0]

    @pytest.mark.parametrize(
        ("network", "message"),
        [
            (bars_recogniser.network(gray=True), "must be float32 N x 3 x height x W with a fixed height; got FLOAT"),
            (bars_recogniser.network(output="ids"), "network.output must be one of the network's tensors"),
        ],
    )
    def test_another_network_is_refused(self, network: onnx.ModelProto, message: str) -> None:
        with pytest.raises(InvalidInputError, match=re.escape(message)):
            fold_recogniser(network, RecogniserNetworkSpec())
