# SPDX-License-Identifier: Apache-2.0
"""The processor of this machine: its name, and the instruction sets that numeric code selects its kernels by."""

import platform
from collections.abc import Collection, Iterator
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
# As Linux names them on x86-64 and AArch64.
_FLAGS = (
    *("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16"),
    *("avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
# Instruction sets as users know them, narrow ones first, and the flags of which one says that there are any.
_SETS = {
    "NEON": {"asimd"},
    "SVE": {"sve"},
    "AVX2": {"avx2"},
    "AVX-512": {"avx512bw"},
    "VNNI": {"avx_vnni", "avx512_vnni"},
    "BF16": {"avx512_bf16", "amx_bf16", "bf16"},
    "AMX": {"amx_tile"},
}
_FLOAT32 = ("AVX-512", "AVX2", "SVE", "NEON")


def cpuinfo() -> str:
    """The text of /proc/cpuinfo; empty where there is none."""
    try:
        return _CPUINFO.read_text("utf-8")
    except OSError:
        return ""


def cpu_model(description: str) -> str:
    """The processor's name in the text of /proc/cpuinfo, else the architecture."""
    return next(_values(description, "model name"), platform.machine())


def cpu_flags(description: str) -> tuple[str, ...]:
    """Instruction set extensions in the text of /proc/cpuinfo that affect speed, in a fixed order."""
    # "flags" on x86-64, "Features" on AArch64.
    listed = next((value.split() for name in ("flags", "Features") for value in _values(description, name)), [])
    return tuple(flag for flag in _FLAGS if flag in listed)


def instruction_sets(flags: Collection[str]) -> tuple[str, ...]:
    """Instruction sets that a processor with these flags has, such as `AVX2` and `VNNI`."""
    return tuple(name for name, any_of in _SETS.items() if any_of.intersection(flags))


def float32_set(flags: Collection[str]) -> str:
    """The widest instruction set that float32 networks can use; empty where none is known."""
    known = instruction_sets(flags)
    return next((name for name in _FLOAT32 if name in known), "")


def _values(description: str, name: str) -> Iterator[str]:
    for line in description.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            yield value.strip()
