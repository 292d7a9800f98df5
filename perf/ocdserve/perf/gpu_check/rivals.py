# SPDX-License-Identifier: Apache-2.0
"""Times of PyTorch and CuPy on the GPU, and the ceilings that PyTorch reaches; imports nothing of this project.

Usage: rivals.py INPUTS.npz OUTPUTS.json REPEATS. The Python that executes it is the machine's, whatever it holds.
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

found: dict[str, Any] = {"versions": {}, "times": [], "figures": [], "absent": []}


def main(inputs: str, outputs: str, repeats: int) -> None:
    """Write what could be measured; each library by itself."""
    numpy: Any = importlib.import_module("numpy")
    with numpy.load(inputs) as file:
        arrays = {name: file[name] for name in file.files}
    for what, measure in (("PyTorch", _pytorch), ("CuPy's label", _cupy)):
        try:
            measure(arrays, repeats)
        except Exception as error:  # whatever the machine's packages do
            found["absent"].append({"what": what, "reason": f"{type(error).__name__}: {error}"})
        Path(outputs).write_text(json.dumps(found), "utf-8")


def _pytorch(arrays: dict[str, Any], repeats: int) -> None:
    torch: Any = importlib.import_module("torch")
    if not torch.cuda.is_available():
        raise RuntimeError("PyTorch sees no GPU")
    found["versions"]["torch"] = torch.__version__
    height, width = (int(side) for side in arrays["size"])
    image = torch.from_numpy(arrays["image"]).cuda()

    def interpolate() -> Any:
        pixels = image.permute(2, 0, 1)[None].float()
        resized = torch.nn.functional.interpolate(pixels, (height, width), mode="bilinear", align_corners=False)
        return resized.mul_(1 / 127.5).sub_(1).half()

    with torch.no_grad():
        _note("torch interpolate", "batch 1, to float16", _torch_times(torch, interpolate, repeats), "in a graph")
        source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device="cuda").random_()
        target = torch.empty_like(source)
        times = _torch_times(torch, partial(target.copy_, source), repeats, row=2)
        _note("torch copy", f"{_COPY_BYTES} bytes", times)
        _figure("memory's speed", "torch copy, read and written", 2 * _COPY_BYTES / _median(times) / 1000, "GB/s")
        for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
            a = torch.randn(_MATRIX, _MATRIX, device="cuda", dtype=dtype)
            b = torch.randn(_MATRIX, _MATRIX, device="cuda", dtype=dtype)
            times = _torch_times(torch, partial(torch.mm, a, b), min(repeats, 10), row=2)
            _note("torch matrix product", f"{_MATRIX} cubed, {name}", times)
            _figure("matrix product", f"torch, {name}", 2 * _MATRIX**3 / _median(times) / 1e6, "TFLOP/s")


def _torch_times(torch: Any, work: Callable[[], Any], repeats: int, row: int = _ROW) -> list[float]:
    """Microseconds of one execution, many recorded as a graph."""
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
    found["versions"]["cupy"] = cupy.__version__
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
        _note("cupyx.scipy.ndimage.label", f"batch 1, {kind}", times, "labels only; with its host's part, no graph")


def _note(subject: str, case: str, times: list[float], note: str = "") -> None:
    found["times"].append({"subject": subject, "case": case, "us": times, "note": note})


def _figure(subject: str, case: str, value: float, unit: str) -> None:
    found["figures"].append({"subject": subject, "case": case, "value": value, "unit": unit})


def _median(times: list[float]) -> float:
    return sorted(times)[len(times) // 2]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
