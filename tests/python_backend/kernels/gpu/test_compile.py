# SPDX-License-Identifier: Apache-2.0
"""Every kernel compiles for every GPU that is served, without one; and the cache returns only matching modules."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ocdserve.backend.kernels.gpu import compile as kernels
from ocdserve.backend.kernels.gpu import nvrtc
from ocdserve.backend.kernels.gpu.__main__ import main
from ocdserve.backend.kernels.gpu.compile import FOLDER, architecture_of, compile_for, shipped_architectures
from ocdserve.backend.kernels.gpu.cubin_cache import CompiledModule, CubinCache, KernelResources
from ocdserve.contract import InvalidInputError, UnavailableError

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")

# A multiprocessor has 65,536: more than 128 a thread leaves room for fewer than 512 threads.
MOST_REGISTERS = 128

_KERNEL = """
#include "half_of.cuh"
extern "C" __global__ void scale(float* values, int count) {
    __shared__ float kept[64];
    const int index = blockIdx.x * 64 + threadIdx.x;
    kept[threadIdx.x] = index < count ? values[index] : 0.f;
    __syncthreads();
    if (index < count) values[index] = half_of(kept[63 - threadIdx.x]) * values[index] + 1.f;
}
"""
_HEADER = "__device__ inline float half_of(float value) { return 0.5f * value; }\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small kernel with a header next to it."""
    (tmp_path / "half_of.cuh").write_text(_HEADER, encoding="utf-8")
    path = tmp_path / "scale.cu"
    path.write_text(_KERNEL, encoding="utf-8")
    return path


@pytest.fixture
def cache(tmp_path: Path) -> CubinCache:
    return CubinCache(tmp_path / "cache")


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.cu")))
def test_every_kernel_compiles_for_every_gpu_within_its_bounds(
    name: str, cache: CubinCache, record_property: Callable[[str, object], None]
) -> None:
    modules = [compile_for(name, architecture, cache) for architecture in ARCHITECTURES]

    record_property("printed", _table(name, modules))
    for module in modules:
        assert module.image.startswith(b"\x7fELF"), module.target
        assert module.kernels, module.target
        for kernel in module.kernels:
            assert kernel.spill_bytes == 0, (module.target, kernel)
            assert kernel.registers <= MOST_REGISTERS, (module.target, kernel)
            # Without a word to the driver, no block gets more.
            assert kernel.shared_bytes <= 48 * 1024, (module.target, kernel)


def _table(name: str, modules: list[CompiledModule]) -> str:
    """Registers of every kernel by architecture; then its stack, spills and shared memory at their largest."""
    lines = [f"{name:28}" + "".join(f"{module.target:>8}" for module in modules) + "   stack  spill  shared"]
    for row in zip(*(module.kernels for module in modules), strict=True):
        lines.append(
            f"  {row[0].name:26}"
            + "".join(f"{kernel.registers:8}" for kernel in row)
            + f"{max(kernel.stack_bytes for kernel in row):8}{max(kernel.spill_bytes for kernel in row):7}"
            + f"{max(kernel.shared_bytes for kernel in row):8}"
        )
    return "\n".join(lines)


def test_the_report_lists_the_resources_of_a_kernel(source: Path, cache: CubinCache) -> None:
    module = compile_for(source, "sm_90", cache)

    (kernel,) = module.kernels
    assert (kernel.name, kernel.shared_bytes, kernel.spill_bytes, kernel.stack_bytes) == ("scale", 256, 0, 0)
    assert 4 <= kernel.registers <= 32


def test_the_report_includes_spills_in_functions_that_are_not_inlined(tmp_path: Path, cache: CubinCache) -> None:
    source = tmp_path / "spills.cu"
    source.write_text(
        "__device__ __noinline__ float many(const float* from) {\n"
        "    float kept[80];\n"
        "    for (int i = 0; i < 80; ++i) kept[i] = from[i];\n"
        "    __syncthreads();\n"
        "    float sum = 0.f;\n"
        "    for (int i = 0; i < 80; ++i) sum = sum * kept[i] + kept[79 - i];\n"
        "    return sum;\n"
        "}\n"
        'extern "C" __global__ void __launch_bounds__(1024, 2) spilling(float* to, const float* from) {\n'
        "    to[threadIdx.x] = many(from + threadIdx.x);\n"
        "}\n",
        encoding="utf-8",
    )

    (kernel,) = compile_for(source, "sm_90", cache).kernels

    assert kernel.spill_bytes > 0


def test_products_and_sums_are_not_fused(source: Path, cache: CubinCache) -> None:
    ptx = compile_for(source, "compute_90", cache).image.decode()

    assert "fma.rn.f32" not in ptx
    assert "mul.f32" in ptx or "mul.rn.f32" in ptx


def test_no_cuda_installation_of_the_machine_is_searched(tmp_path: Path, cache: CubinCache) -> None:
    source = tmp_path / "half.cu"
    source.write_text(
        "#include <cuda_fp16.h>\n"
        'extern "C" __global__ void narrow(__half* to, const float* from) {\n'
        "    to[threadIdx.x] = __float2half(from[threadIdx.x]);\n"
        "}\n",
        encoding="utf-8",
    )
    folder, version = nvrtc.toolkit_headers()

    module = compile_for(source, "sm_75", cache)

    assert [kernel.name for kernel in module.kernels] == ["narrow"]
    assert folder.parts[-3:] == ("nvidia", "cuda_runtime", "include")
    assert version.startswith("12.")


def test_a_source_that_does_not_compile_is_refused_with_the_compilers_words(source: Path, cache: CubinCache) -> None:
    source.write_text(_KERNEL.replace("values[index] = ", "valves[index] = "), encoding="utf-8")

    with pytest.raises(
        nvrtc.CompilationError, match=r'(?s)cannot compile scale\.cu .*identifier "valves" is undefined'
    ) as info:
        compile_for(source, "sm_90", cache)

    assert "scale.cu(8)" in str(info.value)
    assert list(cache.root.glob("*")) == []


def test_a_missing_header_is_named(source: Path, cache: CubinCache) -> None:
    (source.parent / "half_of.cuh").unlink()

    with pytest.raises(InvalidInputError, match=r"half_of\.cuh: there is no such file next to scale\.cu"):
        compile_for(source, "sm_90", cache)


@pytest.mark.parametrize(
    ("architecture", "message"), [("sm90", "as sm_90 .got 'sm90'"), ("sm_20", r"NVRTC 12\.\S+ knows .*90.*got sm_20")]
)
def test_an_architecture_that_is_none_is_refused(
    source: Path, cache: CubinCache, architecture: str, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        compile_for(source, architecture, cache)


def test_a_cached_module_is_not_compiled_again(
    source: Path, cache: CubinCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compile_for(source, "sm_90", cache)
    monkeypatch.setattr(nvrtc.Library, "compile", lambda *_: pytest.fail("compiled again"))

    assert compile_for(source, "sm_90", cache) == first
    assert [path.suffix for path in cache.root.iterdir()] == [".cubin"]


def test_a_change_of_source_header_or_architecture_is_compiled_anew(source: Path, cache: CubinCache) -> None:
    images = [compile_for(source, "sm_90", cache).image]
    images.append(compile_for(source, "sm_89", cache).image)
    (source.parent / "half_of.cuh").write_text(_HEADER.replace("0.5f", "0.25f"), encoding="utf-8")
    images.append(compile_for(source, "sm_90", cache).image)
    source.write_text(_KERNEL.replace("+ 1.f", "+ 2.f"), encoding="utf-8")
    images.append(compile_for(source, "sm_90", cache).image)

    assert len(set(images)) == 4
    assert len(list(cache.root.iterdir())) == 4


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: b"",
        lambda data: b"{}\n" + data.partition(b"\n")[2],
    ],
    ids=["cut off", "one bit", "empty", "no description"],
)
def test_a_damaged_entry_is_replaced(source: Path, cache: CubinCache, damage: object) -> None:
    assert callable(damage)
    first = compile_for(source, "sm_90", cache)
    (entry,) = cache.root.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))

    assert compile_for(source, "sm_90", cache) == first
    assert entry.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_skipped(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    module = compile_for(source, "sm_90", CubinCache(tmp_path / "file" / "cache"))

    assert module.image.startswith(b"\x7fELF")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OCDSERVE_KERNEL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert CubinCache().root == tmp_path / "xdg" / "ocdserve" / "kernels"
    monkeypatch.setenv("OCDSERVE_KERNEL_CACHE", str(tmp_path / "named"))
    assert CubinCache().root == tmp_path / "named"


def test_a_gpu_newer_than_the_compiler_gets_ptx_and_one_too_old_is_refused() -> None:
    assert architecture_of(7, 5) == "sm_75"
    assert architecture_of(9, 0) == "sm_90"
    assert architecture_of(99, 0) == f"compute_{nvrtc.load().architectures[-1]}"
    with pytest.raises(UnavailableError, match=r"compute capability 7\.0 is too old"):
        architecture_of(7, 0)


def test_without_the_compiler_the_error_says_what_to_install(
    source: Path, cache: CubinCache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    nvrtc.load.cache_clear()
    try:
        with pytest.raises(
            UnavailableError,
            match=r"nvidia-cuda-nvrtc-cu12 is not installed\. .*pip install 'ocdserve\[gpu\]'",
        ):
            compile_for(source, "sm_90", cache)
    finally:
        monkeypatch.undo()
        nvrtc.load.cache_clear()


def test_a_cached_module_equals_the_compiled_one_in_every_field(source: Path, cache: CubinCache) -> None:
    compiled = compile_for(source, "sm_90", cache)
    kept = compile_for(source, "sm_90", CubinCache(cache.root))

    assert isinstance(kept.kernels[0], KernelResources)
    assert kept == compiled
    assert os.stat(next(cache.root.iterdir())).st_mode & 0o777 == 0o644


@pytest.fixture
def package(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's only source, the small kernel; nothing is shipped."""
    monkeypatch.setattr(kernels, "FOLDER", source.parent)
    monkeypatch.setattr(kernels, "SHIPPED", tmp_path / "cubins")
    assert shipped_architectures() == ()
    return source


@pytest.fixture
def release(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, in a release for sm_75, 86 and 120, without a compiler."""
    assert main([str(tmp_path / "cubins"), "sm_75", "sm_86", "sm_120"]) == 0

    def absent() -> nvrtc.Library:
        raise UnavailableError("nvidia-cuda-nvrtc-cu12 is not installed. Install what compiles the kernels: pip.")

    monkeypatch.setattr(nvrtc, "load", absent)
    return package


def test_a_release_needs_no_compiler(release: Path, cache: CubinCache) -> None:
    module = compile_for("scale.cu", "sm_86", cache)

    assert shipped_architectures() == (75, 86, 120)
    assert module.image.startswith(b"\x7fELF")
    assert (module.target, [kernel.name for kernel in module.kernels]) == ("sm_86", ["scale"])
    assert b".debug_line" not in module.image and b".nv_debug_line_sass" not in module.image
    assert not cache.root.exists()


@pytest.mark.parametrize(
    ("capability", "architecture"),
    [((7, 5), "sm_75"), ((8, 6), "sm_86"), ((8, 9), "sm_86"), ((12, 0), "sm_120"), ((12, 7), "sm_120")],
)
def test_a_shipped_cubin_serves_later_minors_of_its_major(
    release: Path, capability: tuple[int, int], architecture: str
) -> None:
    assert architecture_of(*capability) == architecture


@pytest.mark.parametrize("capability", [(8, 0), (8, 7), (8, 8), (9, 0), (10, 1), (11, 0), (13, 0)])
def test_without_a_fitting_cubin_and_a_compiler_the_error_names_the_gpu_and_the_remedy(
    release: Path, capability: tuple[int, int]
) -> None:
    with pytest.raises(
        UnavailableError,
        match=rf"^no kernels are compiled for a GPU of compute capability {capability[0]}\.{capability[1]}, and "
        r"nvidia-cuda-nvrtc-cu12 is not installed\. Install what compiles",
    ):
        architecture_of(*capability)


@pytest.mark.parametrize("change", ["source", "header", "damage"])
def test_a_shipped_cubin_of_other_sources_or_damaged_is_not_used(
    release: Path, cache: CubinCache, change: str, tmp_path: Path
) -> None:
    if change == "source":
        release.write_text(_KERNEL + "// more\n", encoding="utf-8")
    elif change == "header":
        (release.parent / "half_of.cuh").write_text(_HEADER + "// more\n", encoding="utf-8")
    else:
        for file in (tmp_path / "cubins").iterdir():
            file.write_bytes(file.read_bytes()[:-1])

    with pytest.raises(UnavailableError, match=r"^nvidia-cuda-nvrtc-cu12 is not installed\. Install what compiles"):
        compile_for("scale.cu", "sm_86", cache)


def test_cubins_that_cannot_be_made_are_explained(
    package: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()

    assert main([str(tmp_path / "file" / "cubins"), "sm_75"]) == 1
    assert main([str(tmp_path / "cubins"), "sm_20"]) == 1

    unwritable, unknown = capsys.readouterr().err.splitlines()
    assert unwritable.endswith(".cubin cannot be written: name a folder that can be.")
    assert "(got sm_20)" in unknown
