# SPDX-License-Identifier: Apache-2.0
"""FP16 graphs, and FP32 graphs that round like them, from a `Float16Plan`.

CPU runtimes widen FP16 nodes to FP32 and drop the casts between them, which hides overflow: they get the latter.
"""

import copy
from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ocdserve.builder.graph.float16_plan import MOVING, Float16Plan, float16_plan
from ocdserve.builder.graph.tensor_types import constant_tensors, node_key, pinned_names


def to_float16(model: onnx.ModelProto, keep_float32: Collection[str] = ()) -> onnx.ModelProto:
    """Convert a network to a strongly typed FP16 graph, see `float16_plan`; inputs and outputs keep their types.

    Tensors keep their names. Each is cast at most once per direction, as `<name>/float16` or `<name>/float32`.
    """
    return _Writer(float16_plan(model, keep_float32), rounding=False).write()


def rounded_float16(model: onnx.ModelProto, keep_float32: Collection[str] = ()) -> onnx.ModelProto:
    """An FP32 graph that rounds every tensor and constant that is FP16 in `to_float16`; overflow becomes infinity.

    Sums inside a node stay FP32, as tensor cores accumulate. A runtime that fuses nodes rounds less often than this
    graph. ONNX Runtime keeps a cast to FP16 and back at every level of graph optimisation, unlike the casts that it
    inserts around FP16 nodes itself.
    """
    return _Writer(float16_plan(model, keep_float32), rounding=True).write()


class _Writer:
    """Applies a plan: with FP16 types, or in FP32 with every FP16 tensor rounded."""

    def __init__(self, plan: Float16Plan, rounding: bool) -> None:
        self._plan = plan
        self._rounding = rounding
        self._constants = constant_tensors(plan.model.graph)
        self._pinned = pinned_names(plan.model.graph)
        self._nodes: list[onnx.NodeProto] = []
        self._added: list[onnx.TensorProto] = []
        self._float16: dict[str, str] = {}
        self._float32: dict[str, str] = {}

    def write(self) -> onnx.ModelProto:
        result = copy.deepcopy(self._plan.model)
        graph = result.graph
        for node in graph.node:
            self._write(node)
        del graph.node[:]
        graph.node.extend(self._nodes)
        used = self._pinned | {name for node in self._nodes for name in node.input}
        kept = [tensor for tensor in graph.initializer if tensor.name not in self._constants or tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend([*kept, *self._added])
        for info in graph.value_info:
            if info.name in self._plan.made and not self._rounding:
                info.type.tensor_type.elem_type = TensorProto.FLOAT16
        return result

    def _write(self, node: onnx.NodeProto) -> None:
        indices = self._plan.nodes.get(node_key(node), ())
        for index, name in enumerate(node.input):
            node.input[index] = self._as_float16(name) if index in indices else self._as_float32(name)
        made = [name for name in node.output if name in self._plan.made]
        # Moved FP16 values need no rounding.
        exact = self._rounding and node.op_type in MOVING
        renamed = {} if exact else {name: name for name in made if self._rounding or name in self._pinned}
        for name in renamed:
            renamed[name] = f"{name}/exact" if self._rounding else f"{name}/float16"
        node.output[:] = [renamed.get(name, name) for name in node.output]
        self._nodes.append(node)
        for name in made:
            self._float16[name] = name if self._rounding else renamed.get(name, name)
            if name in renamed and self._rounding:
                self._round(renamed[name], name)
            elif name in renamed:
                self._cast(renamed[name], name, TensorProto.FLOAT)
                self._float32[name] = name

    def _as_float16(self, name: str) -> str:
        if name not in self._float16:
            self._float16[name] = f"{name}/float16"
            if name in self._constants:
                value = numpy_helper.to_array(self._constants[name]).astype(np.float16)
                stored = value.astype(np.float32) if self._rounding else value
                self._added.append(numpy_helper.from_array(stored, self._float16[name]))
            elif self._rounding:
                self._round(name, self._float16[name])
            else:
                self._cast(name, self._float16[name], TensorProto.FLOAT16)
        return self._float16[name]

    def _as_float32(self, name: str) -> str:
        if name not in self._plan.made or self._rounding:
            return name
        if name not in self._float32:
            self._float32[name] = f"{name}/float32"
            self._cast(self._float16[name], self._float32[name], TensorProto.FLOAT)
        return self._float32[name]

    def _round(self, source: str, target: str) -> None:
        self._cast(source, f"{target}/half", TensorProto.FLOAT16)
        self._cast(f"{target}/half", target, TensorProto.FLOAT)

    def _cast(self, source: str, target: str, to: int) -> None:
        self._nodes.append(helper.make_node("Cast", [source], [target], name=target, to=to))
