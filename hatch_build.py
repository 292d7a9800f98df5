# SPDX-License-Identifier: Apache-2.0
"""Build hooks: the compiled post-processing, a release's cubins, and what an index shows.

Without a C++ compiler everything works, more slowly; without cubins a GPU's kernels are compiled at first use.
"""

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

_PACKAGE = Path("python_backend", "ocdserve", "backend", "kernels", "cpu")
_IN_WHEEL = "ocdserve/backend/kernels"

# Address of the source repository, such as https://HOST/OWNER/ocdserve; see CONTRIBUTING.md.
_URL = "OCDSERVE_URL"
# 1 for a wheel with the GPU's kernels compiled, see CONTRIBUTING.md.
_CUBINS = "OCDSERVE_CUBINS"
# Of Markdown: "!" of an image, text (in which an image may be), target.
_LINK = re.compile(r"(!?)\[((?:!\[[^\[\]]*\]\([^()\s]+\)|[^\[\]])*)\]\(([^()\s]+)\)")
# Of glibc, which every system has that is manylinux; and its oldest release that pip distinguishes everywhere.
_SYSTEM_LIBRARIES = {b"libc.so.6", b"libm.so.6"}
_OLDEST_GLIBC = 17


class CustomMetadataHook(MetadataHookInterface):
    """README.md with absolute links, and URLs, where `OCDSERVE_URL` is set; else with the links' texts only."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set `readme` and `urls`."""
        url = os.environ.get(_URL, "").rstrip("/")
        text = (Path(self.root) / "README.md").read_text("utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": linked(text, url, f"v{metadata['version']}")}
        pages = {
            "Homepage": "",
            "Changelog": f"/blob/v{metadata['version']}/CHANGELOG.md",
            "Documentation": f"/tree/v{metadata['version']}/docs",
            "Issues": "/issues",
        }
        metadata["urls"] = {name: url + path for name, path in pages.items()} if url else {}


def linked(text: str, url: str, tag: str) -> str:
    """Markdown whose links into the repository lead to its pages at `url`; without one, only their texts are left."""

    def link(found: re.Match[str]) -> str:
        image, label, target = found[1], _LINK.sub(link, found[2]), found[3]
        if re.match(r"[a-z]+:", target):
            return f"{image}[{label}]({target})"
        if not url:
            return label
        page = f"{url}/{'raw' if image else 'blob'}/{tag}/"
        return f"{image}[{label}]({page}{f'README.md{target}' if target.startswith('#') else target})"

    fenced = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if index % 2 else _LINK.sub(link, part) for index, part in enumerate(fenced))


class CustomBuildHook(BuildHookInterface):
    """Puts what is compiled into wheels; an editable installation has the library next to its sources, no cubins."""

    _folder: "tempfile.TemporaryDirectory[str] | None" = None

    def dependencies(self) -> list[str]:
        """What compiles the cubins, where they are asked for: NVRTC of requirements.lock; our modules need NumPy."""
        if not _wants_cubins():
            return []
        lock = (Path(self.root) / "requirements.lock").read_text("utf-8")
        return ["numpy", *re.findall(r"^nvidia-cuda-(?:nvrtc|runtime)-cu12==[\d.]+", lock, re.MULTILINE)]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile. Without a C++ compiler warn and continue; fail where cubins are asked for and cannot be made."""
        compile_ = _module(Path(self.root) / _PACKAGE / "compile.py")
        self._folder = None if version == "editable" else tempfile.TemporaryDirectory(prefix="ocdserve-")
        if self._folder and _wants_cubins():
            build_data["force_include"][self._compile_cubins(self._folder.name)] = f"{_IN_WHEEL}/gpu/cubins"
        try:
            if not self._folder:
                compile_.compile_library()
                return
            library = compile_.compile_library(Path(self._folder.name) / compile_.LIBRARY.name)
        except (compile_.CompilationError, OSError) as error:
            self.app.display_warning(f"ocdserve: post-processing stays with NumPy, which is slower: {error}")
            return
        build_data["force_include"][str(library)] = f"{_IN_WHEEL}/cpu/{library.name}"
        build_data["pure_python"] = False
        # Loaded by ctypes, so it works with any Python version.
        build_data["tag"] = f"py3-none-{platform_tag(library.read_bytes())}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled for the wheel."""
        if self._folder:
            self._folder.cleanup()

    def _compile_cubins(self, folder: str) -> str:
        """A folder of cubins of these sources, whatever of ocdserve is installed."""
        target = str(Path(folder) / "cubins")
        sources = os.pathsep.join(str(Path(self.root) / name) for name in ("client", "python_backend"))
        result = subprocess.run(
            [sys.executable, "-m", "ocdserve.backend.kernels.gpu", target],
            env=os.environ | {"PYTHONPATH": sources},
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            self.app.abort(f"ocdserve: there are no cubins, which {_CUBINS} asks for: {result.stderr.strip()}")
        return target


def _wants_cubins() -> bool:
    return os.environ.get(_CUBINS, "") not in ("", "0")


def platform_tag(library: bytes, platform: str | None = None) -> str:
    """Platform of a wheel with this library: manylinux (PEP 600) where it needs nothing but glibc, else this system's.

    Args:
        library: The shared library, ELF.
        platform: As `sysconfig.get_platform()` names it; None: this system's.
    """
    tag = re.sub(r"[-.]", "_", platform or sysconfig.get_platform())
    needed = set(re.findall(rb"(?<=\0)lib[\w+-]+\.so[.\d]*(?=\0)", library))
    releases = [int(minor) for minor in re.findall(rb"(?<=\0)GLIBC_2\.(\d+)[.\d]*(?=\0)", library)]
    if not releases or not needed <= _SYSTEM_LIBRARIES:
        return tag
    return re.sub(r"^linux_", f"manylinux_2_{max(_OLDEST_GLIBC, *releases)}_", tag)


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("ocdserve_compile", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
