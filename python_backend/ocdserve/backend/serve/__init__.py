# SPDX-License-Identifier: Apache-2.0
"""Running the real Triton server on this machine, and keeping it running."""

from ocdserve.backend.serve.foreground import running_server, serve
from ocdserve.backend.serve.options import ServeOptions
from ocdserve.backend.serve.process.ownership import private_directory
from ocdserve.backend.serve.server import TritonServer
from ocdserve.backend.serve.supervisor import Supervisor

__all__ = ["ServeOptions", "Supervisor", "TritonServer", "private_directory", "running_server", "serve"]
