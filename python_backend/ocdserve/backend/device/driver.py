# SPDX-License-Identifier: Apache-2.0
"""The two bindings of CUDA's driver, and the one place that checks what its calls return.

pycuda makes contexts, modules, launches, streams, events and copies; `cuda.bindings` has what pycuda lacks: memory
pools, graphs, and the names of errors. Only this module imports them.
"""

import functools
import importlib
from dataclasses import dataclass
from typing import Any

from ocdserve.backend.device import probe
from ocdserve.backend.device.protocol import DeviceError, DeviceMemoryError
from ocdserve.backend.kernels.gpu import nvrtc
from ocdserve.backend.kernels.gpu.compile import shipped_architectures
from ocdserve.contract import UnavailableError, install_command

_INSTALL = install_command("ocdserve[gpu]")

_OUT_OF_MEMORY = 2

# After these, CUDA refuses every further call of the process (CUDA driver API, CUresult).
_STICKY = frozenset(
    {
        214,  # ECC_UNCORRECTABLE
        220,  # NVLINK_UNCORRECTABLE
        700,  # ILLEGAL_ADDRESS
        702,  # LAUNCH_TIMEOUT
        709,  # CONTEXT_IS_DESTROYED
        710,  # ASSERT
        714,  # HARDWARE_STACK_ERROR
        715,  # ILLEGAL_INSTRUCTION
        716,  # MISALIGNED_ADDRESS
        717,  # INVALID_ADDRESS_SPACE
        718,  # INVALID_PC
        719,  # LAUNCH_FAILED
        721,  # TENSOR_MEMORY_LEAK
        807,  # MPS_CLIENT_TERMINATED
        911,  # EXTERNAL_DEVICE
        999,  # UNKNOWN
    }
)

_RESTART = "No GPU work is possible in this process any more: start it anew. compute-sanitizer finds a kernel at fault."
_REMEDIES = {
    46: "Another process holds the GPU (compute mode exclusive): stop it, or change the mode with nvidia-smi -c 0.",
    100: "See what nvidia-smi says, and whether CUDA_VISIBLE_DEVICES hides the GPU.",
    101: "See what nvidia-smi says, and whether CUDA_VISIBLE_DEVICES hides the GPU.",
    209: "The kernels fit another GPU: remove the folder of OCDSERVE_KERNEL_CACHE.",
    218: "The driver cannot compile the kernels for this GPU: install a newer driver.",
    222: "The driver is older than the kernels' compiler: install a newer driver.",
    300: "The driver is older than the kernels' compiler: install a newer driver.",
    802: "See what nvidia-smi says: the fabric manager may not run.",
    803: "The driver's library and the kernel's module differ: restart the machine, or match the container's libcuda.",
    804: "The CUDA compatibility package does not fit this GPU: remove it, or install a newer driver.",
}
_DEFECT = "This should not happen: report it with this message."


@dataclass(frozen=True)
class Libraries:
    """The two packages, loaded.

    Attributes:
        pycuda: Module `pycuda.driver`, initialised.
        bindings: Module `cuda.bindings.driver`.
        codes: The driver's codes by their descriptions: pycuda's exceptions hold nothing else.
    """

    pycuda: Any
    bindings: Any
    codes: dict[str, int]


@functools.cache
def load() -> Libraries:
    """Import both packages and start the driver. The compiler must be there too, unless cubins are shipped.

    Raises:
        UnavailableError: One is not installed or does not load, or there is no driver or no GPU.
    """
    lacks = probe.missing()
    if not shipped_architectures():
        try:
            nvrtc.load()
        except UnavailableError as error:
            lacks.append(str(error).partition(". ")[0])
    if lacks:
        raise UnavailableError(f"the GPU path cannot run: {'; '.join(lacks)}. {_remedy(lacks)}")
    try:
        pycuda: Any = importlib.import_module("pycuda.driver")
        bindings: Any = importlib.import_module("cuda.bindings.driver")
    except (ImportError, OSError, RuntimeError) as error:
        raise UnavailableError(f"the GPU path cannot run: {error}. Install its packages again: {_INSTALL}") from error
    codes: dict[str, int] = {}
    for code in bindings.CUresult:
        _, text = bindings.cuGetErrorString(code)
        if text:
            codes.setdefault(text.decode(), int(code))
    libraries = Libraries(pycuda, bindings, codes)
    try:
        pycuda.init()
    except pycuda.Error as error:
        raise _translated(libraries, error) from error
    return libraries


def check(result: tuple[Any, ...], call: str) -> Any:
    """The values that a function of `cuda.bindings` returned after its code: None, one, or a tuple.

    Args:
        result: All that it returned.
        call: Name of the function, for the message.

    Raises:
        DeviceMemoryError: The device has not enough memory.
        DeviceError: The call failed otherwise.
    """
    code, *values = result
    if int(code):
        raise failure(load(), int(code), call)
    return (values[0] if len(values) == 1 else tuple(values)) if values else None


def translated(error: BaseException, about: str = "") -> DeviceError | DeviceMemoryError | None:
    """An exception of pycuda as one that `check` would raise; None for other exceptions.

    Its traceback is dropped: frames inside pycuda would keep objects alive for too long.

    Args:
        error: The exception.
        about: What the work was about, for the message.
    """
    libraries = load()
    if not isinstance(error, libraries.pycuda.Error):
        return None
    error.__traceback__ = None
    return _translated(libraries, error, about)


def failure(libraries: Libraries, code: int, call: str) -> DeviceError | DeviceMemoryError:
    """The exception for a code of the driver."""
    bindings = libraries.bindings
    try:
        known = bindings.CUresult(code)
        name = known.name
        _, text = bindings.cuGetErrorString(known)
        explanation = text.decode() if text else "no explanation"
    except ValueError:
        name, explanation = "an error newer than cuda-bindings", "no explanation"
    message = f"{call}: {name} ({code}): {explanation}."
    if code == _OUT_OF_MEMORY:
        return DeviceMemoryError(f"{message} Give the GPU's other users less, or use smaller batches.")
    sticky = code in _STICKY
    return DeviceError(f"{message} {_RESTART if sticky else _REMEDIES.get(code, _DEFECT)}", code=code, sticky=sticky)


def _translated(libraries: Libraries, error: Exception, about: str = "") -> DeviceError | DeviceMemoryError:
    """From pycuda's `cuStreamSynchronize failed: an illegal memory access was encountered - more`."""
    call, _, rest = str(error).partition(" failed: ")
    call = f"{call} ({about})" if about else call
    texts = [text for text in libraries.codes if rest == text or rest.startswith(f"{text} - ")]
    if not texts:
        return DeviceError(f"{call}: {rest or 'no explanation'}. {_DEFECT}")
    return failure(libraries, libraries.codes[max(texts, key=len)], call)


def _remedy(lacks: list[str]) -> str:
    """What to do about what is missing: packages first, they are needed on every machine."""
    remedies = []
    if any("not installed" in lack for lack in lacks):
        remedies.append(f"Install the packages, for which pycuda needs a C++ compiler and CUDA's headers: {_INSTALL}")
    if any("driver" in lack or "GPU" in lack for lack in lacks):
        remedies.append(
            "A GPU path needs an NVIDIA GPU and its driver: 580 or newer, or 525 for CUDA 12; the CPU path is complete"
        )
    return ". ".join(remedies) + "."
