# SPDX-License-Identifier: Apache-2.0
"""Files of `torch.save` read without executing what they name.

A pickle is a program: it names classes and functions and says with what to call them. Here tensors and a few containers
are made as they say; anything else that is named becomes an `Inert` that only remembers the state it is given. Nothing
is imported, so files can be read whose packages are not installed.
"""

import pickle
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import _utils as rebuilding

from ocdserve.contract import InvalidInputError

# Start of a file that PyTorch wrote before version 1.6; later ones are zip archives.
_OLD_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_ZIP_MAGIC = b"PK\x03\x04"

_REAL: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1" if encoding == "latin1" else "utf-8"),
    ("builtins", "bytearray"): bytearray,
    ("builtins", "complex"): complex,
    ("builtins", "set"): set,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_parameter"): rebuilding._rebuild_parameter,
    ("torch._utils", "_rebuild_tensor_v2"): rebuilding._rebuild_tensor_v2,
    ("torch.storage", "UntypedStorage"): torch.UntypedStorage,
    **{("torch", str(value).partition(".")[2]): value for value in vars(torch).values() if type(value) is torch.dtype},
}

# Packages that training leaves values of in its files. A call of anything else is refused, although it would not be
# executed either: such a file is damaged or an attack.
_EXPECTED = (
    "argparse",
    "collections",
    "datetime",
    "enum",
    "functools",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "numpy",
    "nvidia_tao_core",
    "nvidia_tao_pytorch",
    "omegaconf",
    "pathlib",
    "pytorch_lightning",
    "torch",
    "torchvision",
    "typing",
)


class _Kind(type):
    """The class of an inert class: a call of one makes an instance, or is refused."""

    source = ""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls.source.partition(".")[0] not in _EXPECTED:
            raise pickle.UnpicklingError(f"it calls {cls.source}, which has no place among weights")
        return super().__call__()


class Inert(metaclass=_Kind):
    """An object whose class is not imported.

    Attributes:
        source: Full name of its class, or of the function that would have made it.
        state: Its attributes, if it was given any.
    """

    source: ClassVar[str]
    state: Mapping[str, Any] = MappingProxyType({})

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Content of dictionaries' subclasses is not kept, nor that of others below."""

    def append(self, value: Any) -> None:
        """See `__setitem__`."""

    def extend(self, values: Any) -> None:
        """See `__setitem__`."""

    def add(self, value: Any) -> None:
        """See `__setitem__`."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module  # Python 2's name, which old protocols write
        if (module, name) in _REAL:
            return _REAL[module, name]
        return _Kind(name, (Inert,), {"source": f"{module}.{name}"})


def _load(file: Any, **arguments: Any) -> Any:
    return _Unpickler(file, **arguments).load()


def load_restricted(path: Path) -> Any:
    """Content of a file of `torch.save`, tensors on the CPU.

    PyTorch's own restricted reading (`weights_only=True`) is tried first; it refuses files with a class that it does
    not know, such as the configuration of a training.

    Raises:
        InvalidInputError: It is not such a file, it is damaged, or calls what has no place in it.
    """
    _check_form(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        pass
    except Exception as error:  # PyTorch raises various types
        raise _damaged(path, error) from error
    restricted = SimpleNamespace(__name__=__name__, Unpickler=_Unpickler, load=_load)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # files of old versions of PyTorch hold sources, which are compared
            return torch.load(path, map_location="cpu", weights_only=False, pickle_module=restricted)
    except Exception as error:  # whatever a damaged pickle leads to
        raise _damaged(path, error) from error


def _check_form(path: Path) -> None:
    if not path.is_file():
        raise InvalidInputError(f"the checkpoint {path} does not exist" if not path.exists() else f"{path} is a folder")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            raise InvalidInputError(f"{path} is a TorchScript program, not weights; save the module's state_dict()")
        if any(name.endswith("/data.pkl") for name in names):
            return
    elif not tarfile.is_tarfile(path):
        with path.open("rb") as file:
            start = file.read(len(_OLD_MAGIC))
        if start == _OLD_MAGIC:
            return
        if start.startswith(_ZIP_MAGIC):
            raise InvalidInputError(f"{path} is incomplete, its end is missing: copy or download it again")
        raise InvalidInputError(
            f"{path} is not a file of torch.save; name a .pth of a training (an encrypted .tlt or .etlt must be "
            "decrypted where its key is)"
        )
    raise InvalidInputError(f"{path} is an archive, not a checkpoint: extract it first, then name the .pth in it")


def _damaged(path: Path, error: Exception) -> InvalidInputError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return InvalidInputError(
        f"{path} cannot be read as a checkpoint: {reason}. Copy or download it again, from where you trust it"
    )
