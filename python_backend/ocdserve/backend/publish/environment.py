# SPDX-License-Identifier: Apache-2.0
"""A packed environment: the Python packages of the models, for a Triton whose own Python does not have them.

Triton's Python backend unpacks the file into a folder in /tmp when it loads a model that names it, once for all models
that name the same file, and activates it for the model's process. When Triton ends in order, it removes the folder.
"""

import re
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from ocdserve.contract import NETWORK, InvalidInputError

ENVIRONMENT_FILE = "environment.tar.gz"
# Parameter of a model, and its value: the file is in one model's folder, because copies would be unpacked each.
ENVIRONMENT_PARAMETER = "EXECUTION_ENV_PATH"
ENVIRONMENT_PATH = f"$$TRITON_MODEL_DIRECTORY/../{NETWORK}/{ENVIRONMENT_FILE}"

_OURS = re.compile(r"lib/python(?P<version>\d+\.\d+)/site-packages/ocdserve/backend/triton/__init__\.py")
_ACTIVATE = "bin/activate"
_REMEDY = "scripts/pack_environment.sh makes one"


@dataclass(frozen=True)
class PackedEnvironment:
    """What a packed environment holds.

    Attributes:
        path: The file.
        python: Version of Python that it is for, such as "3.10".
        interpreter: The Python that it was made with, which it needs at this path; "" if it brings its own.
        unpacked_bytes: What its files take when they are unpacked.
    """

    path: Path
    python: str
    interpreter: str
    unpacked_bytes: int

    @classmethod
    def read(cls, path: Path) -> "PackedEnvironment":
        """Read the list of the file's members, for which all of it is decompressed.

        Raises:
            InvalidInputError: It cannot be read, or Triton or our models could not work with it.
        """
        names, python, interpreter, size = set(), "", "", 0
        try:
            # As a stream: without memory for what was read.
            with tarfile.open(path, "r|gz") as archive:
                for member in archive:
                    name = member.name.removeprefix("./")
                    names.add(name)
                    size += member.size
                    if name in ("bin/python3", "bin/python") and member.linkname.startswith("/"):
                        interpreter = member.linkname
                    if match := _OURS.fullmatch(name):
                        python = match["version"]
                    archive.members = []  # type: ignore[attr-defined]
        except OSError as error:
            raise InvalidInputError(f"cannot read the environment {str(path)!r}: {error.strerror or error}") from error
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise InvalidInputError(f"{path} is not a .tar.gz file ({error}); {_REMEDY}") from error
        if _ACTIVATE not in names:
            raise InvalidInputError(f"{path} holds no {_ACTIVATE}, which Triton runs; {_REMEDY}")
        if not python:
            raise InvalidInputError(
                f"{path} holds no lib/python3.*/site-packages/ocdserve/backend, "
                f"which an editable installation lacks, too; {_REMEDY}"
            )
        return cls(path, python, interpreter, size)
