# SPDX-License-Identifier: Apache-2.0
"""Times of PyTorch and CuPy on the GPU, and the peak rates that PyTorch reaches.

Usage: other_libraries.py OUTPUTS.json REPEATS [INPUTS.npz], without this project. Without inputs it measures the rates.
"""

import importlib
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

_ROW = 10
_MATRIX = 8192
_COPY_BYTES = 1 << 30

found: dict[str, Any] = {"series": [], "absent": {}}


def main(outputs: str, repeats: int, inputs: str | None = None) -> None:
    """Measure each library that works, and write the times."""
    measures: dict[str, Callable[[], None]] = {"PyTorch's rates": lambda: _rates(repeats)}
    if inputs:
        numpy: Any = importlib.import_module("numpy")
        with numpy.load(inputs) as file:
            arrays = {name: file[name] for name in file.files}
        measures = {
            "PyTorch": lambda: _interpolate(arrays, repeats),
            "CuPy's label": lambda: _cupy(arrays, repeats),
        }
    for what, measure in measures.items():
        try:
            measure()
        except Exception as error:  # whatever the machine's packages do
            found["absent"][what] = f"{type(error).__name__}: {error}"
        Path(outputs).write_text(json.dumps(found), "utf-8")


def _torch() -> Any:
    torch: Any = importlib.import_module("torch")
    if not torch.cuda.is_available():
        raise RuntimeError("PyTorch sees no GPU")
    return torch


def _interpolate(arrays: dict[str, Any], repeats: int) -> None:
    torch = _torch()
    height, width = (int(side) for side in arrays["size"])
    image = torch.from_numpy(arrays["image"]).cuda()

    def interpolate() -> Any:
        pixels = image.permute(2, 0, 1)[None].float()
        resized = torch.nn.functional.interpolate(pixels, (height, width), mode="bilinear", align_corners=False)
        return resized.mul_(1 / 127.5).sub_(1).half()

    with torch.no_grad():
        times = _torch_times(torch, interpolate, repeats)
    _add("torch interpolate", "batch 1, to float16", times, version=torch.__version__, note="in a graph")


def _rates(repeats: int) -> None:
    torch = _torch()
    version = torch.__version__
    with torch.no_grad():
        source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device="cuda").random_()
        target = torch.empty_like(source)
        times = _torch_times(torch, partial(target.copy_, source), repeats, row=2)
        speed = {"GB/s": 2 * _COPY_BYTES / _median(times) / 1000}
        _add("torch copy", f"{_COPY_BYTES} bytes", times, version=version, **speed)
        for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
            a = torch.randn(_MATRIX, _MATRIX, device="cuda", dtype=dtype)
            b = torch.randn(_MATRIX, _MATRIX, device="cuda", dtype=dtype)
            times = _torch_times(torch, partial(torch.mm, a, b), min(repeats, 10), row=2)
            speed = {"TFLOP/s": 2 * _MATRIX**3 / _median(times) / 1e6}
            _add("torch matrix product", f"{_MATRIX} cubed, {name}", times, version=version, **speed)


def _torch_times(torch: Any, work: Callable[[], Any], repeats: int, row: int = _ROW) -> list[float]:
    """Microseconds per execution, by graphs of many."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(row):
            work()
    graph.replay()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        graph.replay()
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1000 * begin.elapsed_time(end) / row)
    return times


def _cupy(arrays: dict[str, Any], repeats: int) -> None:
    cupy: Any = importlib.import_module("cupy")
    ndimage: Any = importlib.import_module("cupyx.scipy.ndimage")
    structure = cupy.ones((3, 3), dtype=cupy.int32)
    for kind in sorted(set(arrays) - {"image", "size"}):
        mask = cupy.asarray(arrays[kind])
        for _ in range(3):
            ndimage.label(mask, structure)
        times = []
        for _ in range(repeats):
            begin, end = cupy.cuda.Event(), cupy.cuda.Event()
            begin.record()
            ndimage.label(mask, structure)
            end.record()
            end.synchronize()
            times.append(1000 * cupy.cuda.get_elapsed_time(begin, end))
        note = "labels only; includes the host, not a graph"
        _add("cupyx.scipy.ndimage.label", f"batch 1, {kind}", times, version=cupy.__version__, note=note)


def _add(subject: str, group: str, times: list[float], **facts: Any) -> None:
    found["series"].append({"subject": subject, "group": group, "us": times, "facts": facts})


def _median(times: list[float]) -> float:
    return sorted(times)[len(times) // 2]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
