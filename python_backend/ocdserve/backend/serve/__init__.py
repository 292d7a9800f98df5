# SPDX-License-Identifier: Apache-2.0
"""Running the real Triton server on this machine, and keeping it running."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ocdserve.backend.serve.foreground import running_server, serve
    from ocdserve.backend.serve.options import ServeOptions
    from ocdserve.backend.serve.process.ownership import private_directory
    from ocdserve.backend.serve.server import TritonServer
    from ocdserve.backend.serve.supervisor import Supervisor

__all__ = ["ServeOptions", "Supervisor", "TritonServer", "private_directory", "running_server", "serve"]

if not TYPE_CHECKING:
    # Imported when they are used: a probe asks the canary every few seconds, and needs none of them.
    _MODULES = {
        "ServeOptions": "options",
        "Supervisor": "supervisor",
        "TritonServer": "server",
        "private_directory": "process.ownership",
        "running_server": "foreground",
        "serve": "foreground",
    }

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
