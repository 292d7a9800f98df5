# SPDX-License-Identifier: Apache-2.0
"""Build hook: compiles the post-processing if there is a compiler; without one everything works, more slowly."""

import importlib.util
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_PACKAGE = Path("python_backend", "ocdserve", "backend", "kernels", "cpu")
_IN_WHEEL = "ocdserve/backend/kernels/cpu"


class CustomBuildHook(BuildHookInterface):
    """Puts the library into wheels, which become platform-specific; an editable one has it next to its sources."""

    _folder: "tempfile.TemporaryDirectory[str] | None" = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; on failure warn and continue."""
        compile_ = _module(Path(self.root) / _PACKAGE / "compile.py")
        try:
            if version == "editable":
                compile_.compile_library()
                return
            self._folder = tempfile.TemporaryDirectory(prefix="ocdserve-")
            library = compile_.compile_library(Path(self._folder.name) / compile_.LIBRARY.name)
        except (compile_.CompilationError, OSError) as error:
            self.app.display_warning(f"ocdserve: post-processing stays with NumPy, which is slower: {error}")
            return
        build_data["force_include"][str(library)] = f"{_IN_WHEEL}/{library.name}"
        build_data["pure_python"] = False
        # Loaded by ctypes, so it works with any Python version.
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled for the wheel."""
        if self._folder:
            self._folder.cleanup()


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("ocdserve_compile", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
