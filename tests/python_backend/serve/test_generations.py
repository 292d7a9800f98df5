# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from ocdserve.backend.publish.environment import PackedEnvironment
from ocdserve.backend.publish.repository import PublishOptions, publish
from ocdserve.backend.serve.generations import Generations
from ocdserve.contract import InvalidInputError

MODELS = ("ocdnet_fused", "ocdnet_preprocess", "ocdnet_network", "ocdnet_postprocess")
ENSEMBLES = ("ocdnet", "ocdnet_raw")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    repository = publish(PublishOptions(tmp_path / "models"))
    (repository / "other" / "1").mkdir(parents=True)
    (repository / "other" / "config.pbtxt").write_text('name: "other"')
    return repository


@pytest.fixture
def generations(repository: Path, tmp_path: Path) -> Generations:
    return Generations(tmp_path / "workspace", repository)


def config(folder: Path) -> Any:
    return text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())


def served(generations: Generations) -> list[str]:
    return sorted(path.name for path in generations.served.iterdir())


def test_our_models_are_copied_and_others_are_served_in_place(generations: Generations, repository: Path) -> None:
    assert (generations.current.models, generations.current.ensembles) == (MODELS, ENSEMBLES)
    assert served(generations) == sorted((*MODELS, *ENSEMBLES, "other"))
    (repository / "ocdnet_network" / "bundle" / "detector.json").unlink()
    copy = generations.served / "ocdnet_network"
    assert (copy.resolve() / "bundle" / "detector.json").is_file()
    assert copy.resolve().is_relative_to(generations.current.folder)
    assert (generations.served / "other").resolve() == repository / "other"
    # As a model resolves it, under either name.
    for name in MODELS:
        for folder in (generations.served / name, generations.current.folder / f"{name}_next"):
            bundle = config(folder).parameters["bundle"].string_value
            assert (folder / bundle).resolve() == copy.resolve() / "bundle"


def test_python_can_write_no_bytecode_next_to_a_model(generations: Generations) -> None:
    for name in MODELS:
        assert (generations.served / name / "1" / "__pycache__").is_file()


def test_stand_ins_hand_everything_on_to_the_other_name(generations: Generations) -> None:
    relay = config(generations.current.relays / "ocdnet_network")
    assert (relay.name, relay.platform, relay.max_batch_size) == ("ocdnet_network", "ensemble", 8)
    assert [(tensor.name, tensor.optional) for tensor in relay.input] == [
        ("NETWORK_IMAGE", False),
        ("FRAME", False),
        ("CONTEXT", True),
    ]
    (step,) = relay.ensemble_scheduling.step
    assert (step.model_name, step.model_version) == ("ocdnet_network_next", -1)
    assert dict(step.input_map) == {name: name for name in ("NETWORK_IMAGE", "FRAME", "CONTEXT")}
    assert dict(step.output_map) == {"MAP": "MAP"}
    back = config(generations.current.relays / "ocdnet_network_next")
    assert (back.name, back.ensemble_scheduling.step[0].model_name) == ("ocdnet_network_next", "ocdnet_network")
    for folder, name in ((generations.current.relays, "ocdnet"), (generations.current.folder, "ocdnet_next")):
        ensemble = config(folder / name)
        assert ensemble.name == name
        assert [step.model_name for step in ensemble.ensemble_scheduling.step] == [
            "ocdnet_preprocess_next",
            "ocdnet_network_next",
            "ocdnet_postprocess_next",
        ]


def test_what_is_linked_is_newer_than_all_before(generations: Generations) -> None:
    first, second = generations.current, generations.add()
    times = []
    # The second was copied later; Triton must see a change in both directions.
    for folder in (second.folder, first.folder, first.relays, second.folder):
        generations.link("ocdnet_network", folder / "ocdnet_network")
        link = generations.served / "ocdnet_network"
        assert link.resolve() == folder / "ocdnet_network"
        times.append([(link / name).stat().st_mtime_ns for name in ("config.pbtxt", "1")])
        assert len(set(times[-1])) == 1
    assert times == sorted(times) and len({moment for moment, _ in times}) == 4


def test_a_start_serves_the_current_generation_alone(generations: Generations) -> None:
    new = generations.add()
    generations.link("ocdnet_network_next", new.folder / "ocdnet_network_next")
    generations.link("ocdnet", new.relays / "ocdnet")
    generations.link("ocdnet_fused", new.folder / "ocdnet_fused")
    generations.settle()
    assert served(generations) == sorted((*MODELS, *ENSEMBLES, "other"))
    for name in (*MODELS, *ENSEMBLES):
        assert (generations.served / name).resolve() == generations.current.folder / name
    generations.current = new
    generations.settle()
    assert (generations.served / "ocdnet").resolve() == new.folder / "ocdnet"


def test_the_digest_is_that_of_the_files(generations: Generations, repository: Path) -> None:
    bundle = repository / "ocdnet_network" / "bundle"
    (bundle / "manifest.json").unlink()
    text = (bundle / "detector.json").read_text()
    (bundle / "detector.json").write_text(text.replace('"thresh": 0.3', '"thresh": 0.4'))
    new = generations.add()
    assert new.digest != generations.current.digest
    for name in (*ENSEMBLES, *MODELS, "ocdnet_next", "ocdnet_raw_next", "ocdnet_fused_next"):
        assert config(new.folder / name).parameters["generation"].string_value == new.digest


def test_a_repository_that_cannot_be_read_leaves_no_files(
    generations: Generations, repository: Path, tmp_path: Path
) -> None:
    before = sorted((tmp_path / "workspace").iterdir())
    (repository / "ocdnet_network" / "config.pbtxt").write_text("no configuration")
    with pytest.raises(InvalidInputError, match="cannot read the model repository"):
        generations.add()
    assert sorted((tmp_path / "workspace").iterdir()) == before


def test_a_bundle_that_cannot_be_read_leaves_no_files(
    generations: Generations, repository: Path, tmp_path: Path
) -> None:
    before = sorted((tmp_path / "workspace").iterdir())
    (repository / "ocdnet_network" / "bundle" / "detector.json").write_text("no specification")
    with pytest.raises(InvalidInputError):
        generations.add()
    assert sorted((tmp_path / "workspace").iterdir()) == before


@pytest.mark.parametrize("keep", [False, True])
def test_a_packed_environment_is_kept_for_the_python_of_another_installation_only(
    repository: Path, tmp_path: Path, keep: bool
) -> None:
    (tmp_path / "packed.tar.gz").write_bytes(b"packages")
    environment = PackedEnvironment(tmp_path / "packed.tar.gz", "3.10", "/usr/bin/python3", 8)
    publish(PublishOptions(repository, environment=environment))
    folder = Generations(tmp_path / "workspace", repository, keep).served
    assert (folder / "ocdnet_network" / "environment.tar.gz").exists() == keep
    for name in (*MODELS, *(f"{name}_next" for name in MODELS)):
        parameters = config(folder / name if (folder / name).exists() else folder.parent / "1" / name).parameters
        assert ("EXECUTION_ENV_PATH" in parameters) == keep
        assert parameters["bundle"].string_value.endswith("bundle")
