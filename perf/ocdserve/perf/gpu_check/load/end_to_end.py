# SPDX-License-Identifier: Apache-2.0
"""JPEG to quads with a network that only needs PyTorch, and without a network; in one and in several processes."""

from ocdserve.backend import Bundle
from ocdserve.contract import OcdserveError
from ocdserve.perf.gpu_check.check_context import CheckContext
from ocdserve.perf.gpu_check.load.in_process import measure_in_process
from ocdserve.perf.gpu_check.load.networks import Picture, measure_network, pictures_of
from ocdserve.perf.gpu_check.load.processes import measure_processes
from ocdserve.perf.gpu_check.maps import timed_maps
from ocdserve.perf.gpu_check.network.engines import bundle_folder, note_speed
from ocdserve.perf.gpu_check.network.stand_ins import stand_in, stand_in_bundle
from ocdserve.perf.gpu_check.network.torch_network import NAME as TORCH
from ocdserve.perf.gpu_check.network.torch_network import TorchNetwork
from ocdserve.perf.gpu_check.timing import GraphTimer


def check_end_to_end(context: CheckContext) -> None:
    """Measure the network alone, the whole detector in this process, and in several at once."""
    maps = timed_maps(context)
    bundles = [stand_in_bundle(context.files.work / "no-network", maps)]
    torch = stand_in_bundle(bundle_folder(context.files.work, TORCH), maps, TORCH)
    try:
        _measure_torch(context, torch)
        bundles.insert(0, torch)
    except OcdserveError as error:
        context.absent(TORCH, error)
    measure_in_process(context, bundles)
    measure_processes(context, bundles[0])


def _measure_torch(context: CheckContext, bundle: Bundle) -> None:
    context.checkpoint(TORCH)
    with context.device() as device:
        network = stand_in(bundle, device)
        timer = GraphTimer(device, context.effort)
        macs = network.macs(*context.effort.size) if isinstance(network, TorchNetwork) else None
        # Known maps are its output: there is no agreement to measure.
        pictures = [Picture(picture.pixels, None) for picture in pictures_of(context)]
        note_speed(context.files.work, bundle, measure_network(context, device, timer, network, TORCH, pictures, macs))
        timer.close()
        network.close()
