# SPDX-License-Identifier: Apache-2.0
"""How fast this GPU copies and begins work: what the stages' times are divided by."""

from ocdserve.backend.device.protocol import Device
from ocdserve.perf.gpu_check.check_context import Setting
from ocdserve.perf.gpu_check.timing import GraphTimer

_SMALL = 256
_HOST_SHARE = 16


def measure_memory(setting: Setting, device: Device, timer: GraphTimer) -> float:
    """Note the speeds; returns that of the GPU's memory in bytes a microsecond, read and written bytes both counted."""
    size = setting.effort.copy_bytes
    setting.go_on("the memory's speed")
    source, target = device.allocate(size), device.allocate(size)
    host = device.host_array(max(size // _HOST_SHARE, 1), "u1")
    try:
        timer.stream.fill(source, 0x5A, size)
        copies = timer.times_us([lambda stream: stream.copy(target, source, size)], row=2)
        copy_us = setting.record.time("copy on the GPU", f"{size} bytes", copies)
        to_host = timer.times_us([lambda stream: stream.to_host(host, source)], row=2)
        to_host_us = setting.record.time("copy to the host", f"{host.nbytes} bytes", to_host)
        to_device = timer.times_us([lambda stream: stream.to_device(target, host)], row=2)
        to_device_us = setting.record.time("copy from the host", f"{host.nbytes} bytes", to_device)
        node = timer.times_us([lambda stream: stream.fill(target, 0, _SMALL)])
        setting.record.time("smallest step of a graph", f"{_SMALL} bytes", node, "in a row")
        node = timer.times_us([lambda stream: stream.fill(target, 0, _SMALL)], row=1)
        setting.record.time("smallest graph", f"{_SMALL} bytes", node, "alone")
    finally:
        timer.stream.synchronize()
        source.close()
        target.close()
    speed = 2 * size / copy_us
    setting.record.count("memory's speed", "copy, read and written", speed / 1000, "GB/s")
    setting.record.count("to the host", "page-locked", host.nbytes / to_host_us / 1000, "GB/s")
    setting.record.count("from the host", "page-locked", host.nbytes / to_device_us / 1000, "GB/s")
    return speed
