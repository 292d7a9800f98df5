# SPDX-License-Identifier: Apache-2.0
"""The child process whose instructions `ocdserve.perf.counting.instructions` counts.

Usage: python -m ocdserve.perf.counting.counted_child JOBS.json CONTROL,ACKNOWLEDGED
(perf's FIFOs; empty: under Callgrind).
"""

import ctypes
import gc
import importlib
import json
import mmap
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What Valgrind's manual calls a client request: four rotations that together do nothing, and an exchange that does
# nothing, which its simulated processor takes as a question; the arguments' address is in rax, the answer in rdx.
_CLIENT_REQUEST = bytes.fromhex(
    "48 89 f8"  # mov rax, rdi
    "31 d2"  # xor edx, edx
    "48 c1 c7 03"  # rol rdi, 3
    "48 c1 c7 0d"  # rol rdi, 13
    "48 c1 c7 3d"  # rol rdi, 61
    "48 c1 c7 33"  # rol rdi, 51
    "48 87 db"  # xchg rbx, rbx
    "48 89 d0"  # mov rax, rdx
    "c3"  # ret
)
_CALLGRIND = int.from_bytes(b"CT", "big") << 16
_ZERO, _DUMP_AT, _START, _STOP = _CALLGRIND + 1, _CALLGRIND + 3, _CALLGRIND + 4, _CALLGRIND + 5


class _Callgrind:
    """Switches Callgrind's instrumentation; outside of Valgrind nothing happens."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._memory.write(_CLIENT_REQUEST)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._request = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(address)
        self._start, self._stop, self._zero = (self._arguments(code) for code in (_START, _STOP, _ZERO))

    def begin(self) -> None:
        self._request(self._start)
        self._request(self._zero)

    def end(self) -> None:
        self._request(self._stop)

    def write(self, name: str) -> None:
        """Write the count to a file that says the name."""
        text = ctypes.create_string_buffer(name.encode())
        self._request(self._arguments(_DUMP_AT, ctypes.addressof(text)))

    @staticmethod
    def _arguments(code: int, argument: int = 0) -> Any:
        return (ctypes.c_uint64 * 6)(code, argument)


class _Perf:
    """Tells perf stat through its FIFOs when to count."""

    def __init__(self, control: str, acknowledged: str) -> None:
        self._control = open(control, "wb", buffering=0)  # noqa: SIM115 - held until the process ends
        self._acknowledged = open(acknowledged, "rb", buffering=0)  # noqa: SIM115

    def begin(self) -> None:
        self._say(b"enable\n")

    def end(self) -> None:
        self._say(b"disable\n")

    def write(self, name: str) -> None:
        """Nothing: perf writes the one count when this process ends."""

    def _say(self, command: bytes) -> None:
        self._control.write(command)
        self._acknowledged.read(16)


def main(jobs: str, fifos: str) -> None:
    """Prepare, warm up and make the counted calls of each job."""
    counter = _Perf(*fifos.split(",")) if fifos else _Callgrind()
    for index, job in enumerate(json.loads(Path(jobs).read_text("utf-8"))):
        prepare = getattr(importlib.import_module(job["module"]), job["function"])
        call: Callable[[], object] = prepare(*job["arguments"])
        for _ in range(job["warm_up"]):
            call()
        gc.collect()
        # A collection costs what earlier jobs left behind.
        gc.disable()
        counter.begin()
        for _ in range(job["calls"]):
            call()
        counter.end()
        gc.enable()
        counter.write(str(index))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
