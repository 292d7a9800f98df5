# SPDX-License-Identifier: Apache-2.0
"""The PyTorch that training uses: what is known about it without importing it, which takes seconds."""

import importlib.util
import re
from importlib import metadata
from pathlib import Path

from ocdserve.backend.device import probe
from ocdserve.contract import install_command

# Modules of the extra `train`.
_MODULES = ("torch", "lightning", "onnxscript", "optuna", "tensorboard", "torch_pruning")
# PyPI has the CUDA build; its CPU build is on an index of PyTorch's own, which uv knows.
_CPU_BUILD = "`uv pip install --torch-backend cpu 'ocdserve[train]'`"
INSTALL = f"{install_command('ocdserve[train]')}; on a machine without a GPU {_CPU_BUILD}, which saves several GB"
# Distributions of CUDA and of its compiler, which only a CUDA build requires.
_CUDA_NAMES = ("nvidia-", "cuda-", "triton")


def missing_modules() -> list[str]:
    """Modules of the extra `train` that are not installed."""
    return [name for name in _MODULES if importlib.util.find_spec(name) is None]


def version() -> str:
    """Version and build, for example `2.13.0+cpu, a CPU build`; empty where PyTorch is not installed."""
    try:
        number = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""
    cuda = _cuda()
    return f"{number}, built for CUDA {cuda}" if cuda else f"{number}, a CPU build"


def unused_cuda() -> str:
    """A sentence about CUDA libraries that nothing on this machine can use; empty where there are none."""
    if not _cuda() or probe.gpu_count():
        return ""
    return (
        f"PyTorch is a CUDA build on a machine without a GPU: {_cuda_bytes() / 1e9:.1f} GB that nothing uses; in a new "
        f"environment {_CPU_BUILD} installs the CPU build"
    )


def _cuda() -> str:
    """The CUDA that PyTorch was built for; empty for other builds."""
    try:
        text = Path(str(metadata.distribution("torch").locate_file("torch/version.py"))).read_text("utf-8")
    except (metadata.PackageNotFoundError, OSError):
        return ""
    found = re.search(r"^cuda\b.*= *'([^']+)'", text, re.MULTILINE)
    return found[1] if found else ""


def _cuda_bytes() -> int:
    """Size of PyTorch's own CUDA libraries and of the distributions of CUDA that it requires."""
    own = (file for file in metadata.files("torch") or () if "cuda" in file.name and ".so" in file.name)
    size = sum(file.size or 0 for file in own)
    waiting, seen = ["torch"], {"torch"}
    while waiting:
        for requirement in metadata.requires(waiting.pop()) or ():
            name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()
            if name in seen or not name.startswith(_CUDA_NAMES):
                continue
            seen.add(name)
            try:
                size += sum(file.size or 0 for file in metadata.files(name) or ())
            except metadata.PackageNotFoundError:
                continue
            waiting.append(name)
    return size
