# SPDX-License-Identifier: Apache-2.0
"""What the text of /proc/cpuinfo says of a processor."""

from ocdserve.backend.processor import cpu_flags, cpu_model, float32_set, instruction_sets

XEON = (
    "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) Processor @ 2.50GHz\n"
    "flags\t\t: fpu sse4_2 avx avx2 fma avx512f avx512_vnni amx_int8 amx_tile hypervisor\nbogomips\t: 5000.00\n"
    "processor\t: 1\nmodel name\t: another\nflags\t\t: fpu\n"
)
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd crc32 asimddp sve\nCPU part\t: 0xd40\n"


def test_the_processor_is_read_from_its_description() -> None:
    assert cpu_model(XEON) == "Intel(R) Xeon(R) Processor @ 2.50GHz"
    assert cpu_flags(XEON) == ("sse4_2", "avx", "fma", "avx2", "avx512f", "avx512_vnni", "amx_tile", "amx_int8")
    assert cpu_flags(GRAVITON) == ("asimd", "asimddp", "sve")
    assert cpu_model("") != ""
    assert cpu_flags("") == ()


def test_instruction_sets_have_the_names_that_users_know() -> None:
    assert instruction_sets(cpu_flags(XEON)) == ("AVX2", "VNNI", "AMX")
    assert instruction_sets(("avx2", "avx512bw", "avx512_bf16")) == ("AVX2", "AVX-512", "BF16")
    assert instruction_sets(cpu_flags(GRAVITON)) == ("NEON", "SVE")
    widest = [float32_set(flags) for flags in (("avx2", "avx512bw"), ("avx2",), cpu_flags(GRAVITON), ("asimd",), ())]
    assert widest == ["AVX-512", "AVX2", "SVE", "NEON", ""]
