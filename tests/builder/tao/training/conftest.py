# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of TAO's training actions; all need the extra `train`."""

import pytest

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tests run in parallel: more threads would only wait for each other."""
    torch.set_num_threads(1)
