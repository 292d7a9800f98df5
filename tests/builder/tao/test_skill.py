# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import pytest
import yaml

from ocdserve.builder.tao.actions import ACTIONS
from ocdserve.builder.tao.skill import skill_info
from ocdserve.builder.tao.spec.load import keys
from ocdserve.builder.tao.tao_schema import write_schemas

PUBLISHED = Path(__file__).parents[4] / "shared/reference/tao-ocdnet/references/tao-deploy-ocdnet.skill_info.yaml"


def written(folder: Path) -> Any:
    write_schemas(folder)
    return yaml.safe_load((folder / "references" / "skill_info.yaml").read_text("utf-8"))


def test_every_action_has_a_command_and_an_existing_template(tmp_path: Path) -> None:
    info = written(tmp_path)
    assert info == skill_info("spec_template_{}.yaml")
    assert info["actions"]["evaluate"]["command"] == "ocdnet evaluate -e {config_path}"
    assert set(info["actions"]) == set(ACTIONS) - {"default_specs"} == set(info["spec_templates"])
    assert all((tmp_path / "references" / name).is_file() for name in info["spec_templates"].values())


def test_every_key_is_one_of_the_spec(tmp_path: Path) -> None:
    info = written(tmp_path)
    named = {*info["spec_shorthand_keys"].values()}
    for action in info["actions"]:
        described = info["actions"][action]
        for part in (
            described["inputs"],
            described["outputs"],
            info["data_sources"][action],
            info["spec_params"][action],
        ):
            named |= set(part)
    assert named <= set(keys())


@pytest.mark.parametrize("part", ["actions", "data_sources", "spec_params", "spec_shorthand_keys"])
def test_actions_keys_and_data_are_the_published_ones(part: str) -> None:
    if not PUBLISHED.is_file():
        pytest.skip(f"the published metadata is not there: {PUBLISHED}")
    assert skill_info("{}")[part] == yaml.safe_load(PUBLISHED.read_text("utf-8"))[part]
