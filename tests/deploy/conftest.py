# SPDX-License-Identifier: Apache-2.0
"""Tools that check the files of docker/ and charts/; scripts/install_deploy_tools.sh installs them."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = REPOSITORY / ".tools" / "deploy"


@pytest.fixture(scope="session")
def tool() -> Callable[[str], Path]:
    """A function that finds a tool by its name, and skips the test where it is not installed."""

    def find(name: str) -> Path:
        found = shutil.which(name, path=f"{TOOLS / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}")
        if found is None:
            pytest.skip(f"{name} is not installed; scripts/install_deploy_tools.sh does it")
        return Path(found)

    return find
