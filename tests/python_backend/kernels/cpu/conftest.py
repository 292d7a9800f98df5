# SPDX-License-Identifier: Apache-2.0
"""The compiled library, if this machine can compile it."""

import pytest

from ocdserve.backend.kernels.cpu.compile import LIBRARY, CompilationError, find_compiler
from ocdserve.backend.kernels.cpu.library import Library, examine


@pytest.fixture(scope="session")
def compiler() -> list[str]:
    """The command of the C++ compiler; skips where there is none."""
    try:
        return find_compiler()
    except CompilationError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def library() -> Library:
    """The installed library; skips where there is none."""
    if problem := examine():
        pytest.skip(f"no compiled post-processing, {problem}: run python -m ocdserve.backend.kernels.cpu")
    return Library(LIBRARY)
