# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import pytest
import yaml

from ocdserve.builder.tao.actions import ACTIONS
from ocdserve.builder.tao.skill import skill_infos
from ocdserve.builder.tao.spec.load import keys
from ocdserve.builder.tao.tao_schema import write_schemas

PUBLISHED = Path(__file__).parents[4] / "shared" / "reference" / "tao-ocdnet" / "references"
TRAINING = ("train", "quantize", "evaluate", "export", "prune", "retrain", "inference")
# Ours, and NVIDIA's of the same skill.
FILES = {"skill_info.yaml": "skill_info.yaml", "ocdnet-deploy.skill_info.yaml": "tao-deploy-ocdnet.skill_info.yaml"}


@pytest.fixture
def written(tmp_path: Path) -> dict[str, Any]:
    write_schemas(tmp_path)
    return {name: yaml.safe_load((tmp_path / "references" / name).read_text("utf-8")) for name in FILES}


def test_every_action_has_a_command_and_an_existing_template(written: dict[str, Any], tmp_path: Path) -> None:
    assert written == skill_infos("spec_template_{}.yaml")
    training, deploy = (written[name] for name in FILES)
    assert tuple(training["actions"]) == TRAINING == tuple(training["spec_templates"])
    deployed = {action.name for action in ACTIONS.values() if action.image == "deploy"} - {"default_specs"}
    assert set(deploy["actions"]) == deployed == set(deploy["spec_templates"])
    assert {*training["actions"], *deploy["actions"], "default_specs", "automl"} == set(ACTIONS)
    assert deploy["actions"]["evaluate"]["command"] == "ocdnet evaluate -e {config_path}"
    assert training["actions"]["retrain"]["command"] == "ocdnet train -e {config_path}"
    for info in (training, deploy):
        assert all((tmp_path / "references" / name).is_file() for name in info["spec_templates"].values())


@pytest.mark.parametrize("name", FILES)
def test_every_key_is_one_of_the_spec(name: str, written: dict[str, Any]) -> None:
    info = written[name]
    named = {*info["spec_shorthand_keys"].values()}
    for action, described in info["actions"].items():
        data = info["data_sources"].get(action, {})
        for part in (described["inputs"], described["outputs"], data, info["spec_params"][action]):
            named |= set(part)
    assert named <= set(keys())


@pytest.mark.parametrize("part", ["actions", "data_sources", "spec_params", "spec_shorthand_keys"])
@pytest.mark.parametrize("name", FILES)
def test_actions_keys_and_data_are_the_published_ones(name: str, part: str) -> None:
    path = PUBLISHED / FILES[name]
    if not path.is_file():
        pytest.skip(f"the published metadata is not there: {path}")
    assert skill_infos("{}")[name][part] == yaml.safe_load(path.read_text("utf-8"))[part]
