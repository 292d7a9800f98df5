# SPDX-License-Identifier: Apache-2.0
"""A model of the GPU path's throughput, from counted work and published rates; nothing of it was measured on a GPU.

    python -m ocdserve.perf.studies.gpu_model --images DIR > perf/results/gpu-model-DATE.md

Counts the networks' work, and measures the CPU time of decoding the JPEG files of 1280 x 720 in DIR by this process's
threads. Every other number is a constant of this file: a rate of a data sheet, or an assumption that says so.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import simplejpeg
import torch
from torch import Tensor, nn

from ocdserve.backend import Bundle
from ocdserve.backend.stages.image import decode
from ocdserve.builder.graph.describe import describe
from ocdserve.builder.train.graph_module import GraphModule
from ocdserve.builder.train.networks.deform import TAPS, DeformConv2d
from ocdserve.builder.train.networks.model import NetworkOptions, build_network

# The batch, the size of pictures, and the size at which the network sees them, (height, width).
BATCH, PICTURE, NETWORK = 8, (720, 1280), (736, 1280)
BOXES = 60

# Cores of the host, an assumption.
CORES = 16
PROCESSES = (1, 2, 4)


@dataclass(frozen=True)
class Gpu:
    """Published peaks of a GPU (NVIDIA's data sheet of that product; tensor rates without sparsity).

    Attributes:
        memory: GB/s.
        fp16: TFLOP/s of the tensor cores, two a multiply-accumulate.
        int8: TOP/s likewise.
        pcie: GB/s in one direction.
        multiprocessors: Their number.
    """

    name: str
    memory: float
    fp16: float
    int8: float
    pcie: float
    multiprocessors: int


GPUS = (
    Gpu("H200", 4800, 989, 1979, 64, 132),
    Gpu("L40S", 864, 362, 733, 32, 142),
    Gpu("L4", 300, 121, 242, 32, 58),
    Gpu("A10", 600, 125, 250, 32, 72),
)

# Assumptions, low and high, which the first measurement replaces.
COMPUTE = (0.35, 0.65)  # Of the tensor peak, in a layer that computes.
STREAM = (0.6, 0.85)  # Of the memory and PCIe peaks.
NODE_US = (3.0, 1.5)  # A small node of a graph.
ROUND_US = (0.25, 0.15)  # One dependent round trip to the L2 cache.
SHARED_ROUND_US = (0.04, 0.02)  # One to shared memory.
MEASURE_US = (25.0, 12.0)  # One wave of boxes: chains, calipers and arcs, some lanes in series.
PYTHON_MS = (0.30, 0.15)  # Python of a fused request that is not decoding: the lock is held.
TRITON_MS = (0.6, 0.3)  # CPU time of server and transport a request, without the lock.

# Of the post-processing: kernels, fill and copies; the most dependent rounds that gpu_rounds.py counts for receipts and
# scenes, of join_segments, list_regions and pick_candidates, and of binarise in shared memory.
NODES, ROUNDS, SHARED_ROUNDS = 11, 57 + 26 + 2, 122
# Blocks of the measuring kernel that a multiprocessor holds, by its 80 registers a thread.
RESIDENT = 6
# Bytes a pixel: the map; masks, eight times; of the parents of a word of 32 pixels a sector of 32 bytes, three times.
POST_BYTES = 1 + 8 / 8 + 3 * 32 / 32
# Counts, and 256 rows.
RESULT_BYTES = 16 + 256 * 48


@dataclass(frozen=True)
class Layer:
    """Multiply-accumulates, and elements read and written with all fused into the layer, of one image.

    Attributes:
        only_fp16: No 8-bit kernel exists for it.
    """

    macs: int
    elements: int
    only_fp16: bool = False


def layers_of(network: nn.Module, size: tuple[int, int]) -> list[Layer]:
    """The convolutions and linear layers of one image, run once on the CPU; what lies between is taken as fused."""
    found: list[Layer] = []

    def count(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        places = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
        macs = places.numel() // layer.weight.shape[0] * layer.weight.numel()
        elements = sum(value.numel() for value in inputs) + output.numel() + layer.weight.numel()
        deformable = isinstance(layer, DeformConv2d)
        # The samples of all taps are written and read.
        taps = 2 * TAPS * inputs[0].shape[1] * prod(output.shape[-2:]) if deformable else 0
        found.append(Layer(macs, elements + taps, deformable))

    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, DeformConv2d)
    hooks = [layer.register_forward_hook(count) for layer in network.modules() if isinstance(layer, kinds)]
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, *size))
    for hook in hooks:
        hook.remove()
    return found


def network_us(layers: Sequence[Layer], gpu: Gpu, int8: bool, side: int) -> float:
    """Microseconds an image of a batch, the sum of each layer's larger of computing and moving.

    Args:
        layers: Of the network.
        gpu: The GPU.
        int8: 8-bit layers where there are such.
        side: 0 for the slower, 1 for the faster assumption.
    """
    total = 0.0
    for layer in layers:
        narrow = int8 and not layer.only_fp16
        compute = 2 * layer.macs / (COMPUTE[side] * (gpu.int8 if narrow else gpu.fp16) * 1e6)
        move = (1 if narrow else 2) * layer.elements / (STREAM[side] * gpu.memory * 1e3)
        total += max(compute, move)
    return total


def preprocess_us(gpu: Gpu, side: int) -> float:
    """Microseconds an image: the picture is read, half-precision planes are written, one node a batch."""
    moved = 3 * prod(PICTURE) + 3 * 2 * prod(NETWORK)
    return moved / (STREAM[side] * gpu.memory * 1e3) + NODE_US[side] / BATCH


def postprocess_us(gpu: Gpu, side: int, batch: int = BATCH) -> float:
    """Microseconds an image: nodes and dependent rounds once a batch, waves of boxes, bytes."""
    waves = ceil(batch * BOXES / (RESIDENT * gpu.multiprocessors))
    rounds = ROUNDS * ROUND_US[side] + SHARED_ROUNDS * SHARED_ROUND_US[side]
    once = NODES * NODE_US[side] + rounds + waves * MEASURE_US[side]
    return once / batch + POST_BYTES * prod(NETWORK) / (STREAM[side] * gpu.memory * 1e3)


def copies_us(gpu: Gpu, side: int) -> tuple[float, float]:
    """Microseconds an image of the copies to and from the GPU, which overlap with other batches' kernels."""
    rate = STREAM[side] * gpu.pcie * 1e3
    return 3 * prod(PICTURE) / rate, RESULT_BYTES / rate + NODE_US[side] / BATCH


@dataclass(frozen=True)
class Decoding:
    """CPU time of decoding a picture in milliseconds, and the part of it with the interpreter's lock held."""

    total: float
    locked: float


def measured(images: Sequence[bytes], rounds: int) -> tuple[Decoding, Decoding]:
    """Decoding into memory that is there, and by Pillow, which copies the pixels with the lock held; medians."""
    buffer = np.empty((*PICTURE, 3), np.uint8)
    times: dict[str, list[float]] = {"all": [], "native": [], "load": [], "copy": []}
    for data in [data for _ in range(rounds) for data in images]:
        picture = PIL.Image.open(BytesIO(data))
        for name, work in (
            ("all", partial(decode, data, allocate=lambda height, width: buffer)),
            ("native", partial(simplejpeg.decode_jpeg, data, "RGB", buffer=buffer)),
            ("load", picture.load),
            ("copy", partial(np.asarray, picture)),
        ):
            started = time.thread_time()
            work()
            times[name].append(1e3 * (time.thread_time() - started))
    total, native, load, copy = (statistics.median(values) for values in times.values())
    return Decoding(total, total - native), Decoding(load + copy, copy)


@dataclass(frozen=True)
class Bound:
    """What bounds one arrangement.

    Attributes:
        rate: Images/s.
        by: The stage.
    """

    rate: float
    by: str


def bound(gpu: Gpu, network: float, decoding: Decoding, processes: int, side: int) -> Bound:
    """The smallest of what GPU, copies, cores and the interpreters' locks allow, by MPS for several processes."""
    kernels = preprocess_us(gpu, side) + network + postprocess_us(gpu, side)
    cpu = decoding.total + PYTHON_MS[side] + TRITON_MS[side]
    rates = {
        "GPU": 1e6 / kernels,
        "copy to GPU": 1e6 / copies_us(gpu, side)[0],
        "CPU cores": 1e3 * CORES / cpu,
        "Python": 1e3 * processes / (decoding.locked + PYTHON_MS[side]),
    }
    by = min(rates, key=lambda name: rates[name])
    return Bound(rates[by], by)


def networks() -> dict[str, list[Layer]]:
    """The layers of the three networks at `NETWORK`."""
    default = GraphModule(describe(Bundle.load().model_path).model)
    plain, deformable = (build_network(NetworkOptions(name)) for name in ("resnet18", "deformable_resnet18"))
    return {
        "ResNet-18": layers_of(plain, NETWORK),
        "deformable ResNet-18": layers_of(deformable, NETWORK),
        "PP-OCRv6 small": layers_of(default, NETWORK),
    }


def page(work: Mapping[str, Sequence[Layer]], new: Decoding, old: Decoding) -> Iterator[str]:
    """Lines of Markdown; every table says that it is a model."""
    yield "| counted: network at 736 x 1280 | GMAC | MB moved in FP16 | layers |"
    yield "|---|---|---|---|"
    for name, layers in work.items():
        macs, elements = sum(layer.macs for layer in layers), sum(layer.elements for layer in layers)
        yield f"| {name} | {macs / 1e9:.1f} | {2 * elements / 1e6:.0f} | {len(layers)} |"
    yield ""
    yield "| measured: decoding a JPEG of 720p | CPU ms | of it with the lock held |"
    yield "|---|---|---|"
    yield f"| simplejpeg into memory that is there | {new.total:.2f} | {new.locked:.2f} |"
    yield f"| Pillow and `np.asarray` | {old.total:.2f} | {old.locked:.2f} |"
    yield ""
    yield f"| model: us an image, batch {BATCH} | {' | '.join(gpu.name for gpu in GPUS)} |"
    yield "|---" * (1 + len(GPUS)) + "|"
    for name, stage in _stages(work).items():
        yield f"| {name} | {' | '.join(_range(stage(gpu, 1), stage(gpu, 0)) for gpu in GPUS)} |"
    yield ""
    processes = " | ".join(f"{count} process{'es' if count > 1 else ''}" for count in PROCESSES)
    yield f"| model: images/s, {CORES} cores | {processes} |"
    yield "|---" * (1 + len(PROCESSES)) + "|"
    for gpu in GPUS:
        for name, layers in work.items():
            for int8 in (False, True):
                cells = [_bounds(gpu, layers, int8, new, count) for count in PROCESSES]
                yield f"| {gpu.name}, {name}, {'INT8' if int8 else 'FP16'} | {' | '.join(cells)} |"
    plain = work["ResNet-18"]
    cells = [_bounds(GPUS[0], plain, False, old, count) for count in PROCESSES]
    yield f"| {GPUS[0].name}, ResNet-18, FP16, decoding by Pillow | {' | '.join(cells)} |"


def _stages(work: Mapping[str, Sequence[Layer]]) -> dict[str, Callable[[Gpu, int], float]]:
    """Microseconds of each stage on the GPU by its name in the table."""
    network = {
        f"network: {name}, {'INT8' if int8 else 'FP16'}": partial(_network_us, layers, int8)
        for name, layers in work.items()
        for int8 in (False, True)
    }
    return {
        "copy to the GPU": lambda gpu, side: copies_us(gpu, side)[0],
        "preprocessing": preprocess_us,
        **network,
        "post-processing": postprocess_us,
        "post-processing, batch 1": lambda gpu, side: postprocess_us(gpu, side, 1),
        "copy to the host": lambda gpu, side: copies_us(gpu, side)[1],
    }


def _network_us(layers: Sequence[Layer], int8: bool, gpu: Gpu, side: int) -> float:
    return network_us(layers, gpu, int8, side)


def _bounds(gpu: Gpu, layers: Sequence[Layer], int8: bool, decoding: Decoding, processes: int) -> str:
    low, high = (bound(gpu, network_us(layers, gpu, int8, side), decoding, processes, side) for side in (0, 1))
    by = low.by if low.by == high.by else f"{low.by}, then {high.by}"
    return f"{low.rate:,.0f}-{high.rate:,.0f} ({by})"


def _range(low: float, high: float) -> str:
    return f"{low:.0f}-{high:.0f}" if high >= 20 else f"{low:.1f}-{high:.1f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 without JPEG files of the size."""
    parser = argparse.ArgumentParser(prog="python -m ocdserve.perf.studies.gpu_model", description=__doc__)
    parser.add_argument("--images", metavar="DIR", type=Path, required=True)
    parser.add_argument("--rounds", metavar="N", type=int, default=20, help="of decoding each (default: 20)")
    options = parser.parse_args(arguments)
    files = [path.read_bytes() for path in sorted(options.images.glob("*.jpg"))]
    images = [data for data in files if PIL.Image.open(BytesIO(data)).size == PICTURE[::-1]]
    if not images:
        sys.stderr.write(f"gpu_model: {options.images} has no JPEG file of {PICTURE[1]} x {PICTURE[0]}\n")
        return 2
    sys.stdout.writelines(f"{line}\n" for line in page(networks(), *measured(images, options.rounds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
