# SPDX-License-Identifier: Apache-2.0
"""A published repository in a second, bare Triton; with a packed environment: tests/campaigns/deploy/environment.py."""

from pathlib import Path

import pytest

from ocdserve.backend.publish.repository import PublishOptions, publish
from ocdserve.backend.verification import verify
from ocdserve.contract import UnavailableError

pytestmark = pytest.mark.triton


def test_a_repository_that_works_is_shown_by_what_its_models_find(red_bundle: Path, tmp_path: Path) -> None:
    repository = publish(PublishOptions(tmp_path / "models", red_bundle, threads=1))
    found = verify(repository)
    assert list(found) == ["ocdnet", "ocdnet_raw", "ocdnet_fused"]
    # The network of this bundle finds red, of which the picture's white ground has as much as it can.
    whole = [0.0, 0.0, 128.0, 0.0, 128.0, 96.0, 0.0, 96.0]
    assert [quads[0] for quads in found.values()] == [pytest.approx(whole)] * 3


def test_a_repository_that_does_not_load_is_explained_by_the_log(red_bundle: Path, tmp_path: Path) -> None:
    repository = publish(PublishOptions(tmp_path / "models", red_bundle, threads=1))
    for model in repository.glob("*/1/model.py"):
        model.write_text("import shapeless")
    with pytest.raises(UnavailableError, match=r"does not work in another Triton: (?s:.*)No module named 'shapeless'"):
        verify(repository)
