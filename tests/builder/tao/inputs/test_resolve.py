# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest

from ocdserve.builder.tao.cli import main
from ocdserve.builder.tao.inputs.resolve import Request, Resolved, resolve
from ocdserve.contract import InvalidInputError


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """Result folder of a training of two epochs, as TAO leaves it; the first was the better one."""
    folder = tmp_path / "job" / "train"
    folder.mkdir(parents=True)
    for name in ("model_best.pth", "model_epoch_000_step_00046.pth", "model_epoch_001_step_00092.pth"):
        (folder / name).write_bytes(b"")
    (folder / "ocd_model_latest.pth").symlink_to("model_epoch_001_step_00092.pth")
    status = [
        {"status": "RUNNING", "epoch": 0, "kpi": {"hmean": "0.61"}},
        {"status": "RUNNING", "epoch": 1, "kpi": {"hmean": "0.52"}},
    ]
    (folder / "status.json").write_text("".join(f"{json.dumps(line)}\n" for line in status) + "no json\n")
    return folder.parent


def of(action: str, parent: Path, checkpoint: str = "best", output: Path | None = None) -> Resolved:
    return resolve(Request(action, parent, output, checkpoint))


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


class TestCheckpoints:
    @pytest.mark.parametrize("action", ["evaluate", "inference", "export", "prune"])
    def test_actions_that_evaluate_or_convert_take_the_best(self, job: Path, action: str) -> None:
        found = of(action, job).values
        assert found[f"{action}.checkpoint"] == str(job / "train" / "model_best.pth")
        assert found["results_dir"] == str(job.parent / action)

    def test_the_latest_is_taken_only_on_request_and_never_the_link(self, job: Path) -> None:
        found = of("evaluate", job, "latest").values["evaluate.checkpoint"]
        assert found == str(job / "train" / "model_epoch_001_step_00092.pth")

    def test_an_epoch_is_chosen_by_its_number(self, job: Path) -> None:
        assert str(of("prune", job, "epoch:0").values["prune.checkpoint"]).endswith("model_epoch_000_step_00046.pth")
        with pytest.raises(InvalidInputError, match=r"no checkpoint of epoch 7; it has 0, 1"):
            of("prune", job, "epoch:7")

    def test_quantize_takes_the_full_checkpoint_of_the_best_epoch(self, job: Path) -> None:
        assert str(of("quantize", job).values["quantize.model_path"]).endswith("model_epoch_000_step_00046.pth")
        with pytest.raises(InvalidInputError, match=r"cannot read model_best\.pth"):
            of("quantize", job, "model_best.pth")

    def test_quantize_without_a_status_takes_the_latest_and_says_so(self, job: Path) -> None:
        (job / "train" / "status.json").unlink()
        found = of("quantize", job)
        assert str(found.values["quantize.model_path"]).endswith("model_epoch_001_step_00092.pth")
        assert "latest was taken" in found.notes[0]

    def test_a_missing_best_checkpoint_is_refused_with_the_present_ones(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match=r"no model_best.pth; it holds other.pth"):
            of("evaluate", touch(tmp_path / "a", "other.pth"))

    def test_train_resumes_from_its_own_folder_and_else_takes_the_pretrained(self, job: Path, tmp_path: Path) -> None:
        pretrained = tmp_path / "ptm.pth"
        resumed = resolve(Request("train", None, job / "train", pretrained=pretrained))
        path = resumed.values["train.resume_training_checkpoint_path"]
        assert str(path).endswith("model_epoch_001_step_00092.pth")
        assert "model.pretrained_model_path" not in resumed.values
        fresh = resolve(Request("train", None, tmp_path / "new", pretrained=pretrained))
        assert fresh.values["model.pretrained_model_path"] == str(pretrained)


class TestPruned:
    def test_retrain_takes_the_pruned_network_and_sets_the_switch(self, tmp_path: Path) -> None:
        found = of("retrain", touch(tmp_path / "prune", "pruned_0.1.pth"))
        assert found.values["model.pruned_graph_path"] == str(tmp_path / "prune" / "pruned_0.1.pth")
        assert "model.load_pruned_graph=true" in found.overrides()

    def test_several_candidates_need_a_name(self, tmp_path: Path) -> None:
        parent = touch(tmp_path / "prune", "pruned_0.1.pth", "pruned_0.2.pth")
        with pytest.raises(InvalidInputError, match="more than one pruned network"):
            of("retrain", parent)
        assert str(of("retrain", parent, "pruned_0.2.pth").values["model.pruned_graph_path"]).endswith("0.2.pth")

    def test_a_network_trained_from_a_pruned_one_brings_its_graph(self, tmp_path: Path) -> None:
        found = of("evaluate", touch(tmp_path / "retrain", "model_best.pth", "pruned_model.pth")).values
        assert found["model.load_pruned_graph"] is True
        assert found["model.pruned_graph_path"] == str(tmp_path / "retrain" / "pruned_model.pth")


class TestDeploy:
    def test_the_engine_s_paths_are_the_published_ones(self, tmp_path: Path) -> None:
        parent = touch(tmp_path / "export", "model.onnx", "other.onnx")
        assert of("gen_trt_engine", parent, output=Path("/out")).values == {
            "results_dir": "/out",
            "gen_trt_engine.onnx_file": str(parent / "model.onnx"),
            "gen_trt_engine.trt_engine": "/out/model.engine",
            "gen_trt_engine.tensorrt.calibration.cal_cache_file": "/out/cal.bin",
        }

    def test_export_writes_model_onnx(self, job: Path) -> None:
        assert of("export", job, output=Path("/out")).values["export.onnx_file"] == "/out/model.onnx"

    @pytest.mark.parametrize("action", ["evaluate", "inference"])
    def test_an_engine_is_preferred_to_an_onnx_and_its_bundle_is_no_artefact(self, tmp_path: Path, action: str) -> None:
        parent = touch(tmp_path / "gen", "model.engine", "model.onnx", "cal.bin")
        touch(parent / "model.bundle", "model.plan", "model.onnx")
        assert of(action, parent).values[f"{action}.trt_engine"] == str(parent / "model.engine")
        (parent / "model.engine").unlink()
        assert of(action, parent).values[f"{action}.trt_engine"] == str(parent / "model.onnx")

    @pytest.mark.parametrize("action", ["evaluate", "inference"])
    def test_an_onnx_beside_checkpoints_is_taken_by_its_name_only(self, job: Path, action: str) -> None:
        exported = touch(job / "train", "model_best.onnx") / "model_best.onnx"
        for wanted, name in (
            ("best", "model_best.pth"),
            ("model_best.pth", "model_best.pth"),
            ("epoch:0", "model_epoch_000_step_00046.pth"),
        ):
            assert of(action, job, wanted).values == {
                "results_dir": str(job.parent / action),
                f"{action}.checkpoint": str(job / "train" / name),
            }
        assert of(action, job, "model_best.onnx").values[f"{action}.trt_engine"] == str(exported)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (("detect", Path()), "no action 'detect'"),
        (("evaluate", None), "needs --parent"),
        (("evaluate", Path("/nowhere")), "does not exist"),
        (("evaluate", Path(), None, "epoch:x"), "epoch:N"),
    ],
)
def test_malformed_requests_are_refused(request_: tuple[object, ...], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        Request(*request_)  # type: ignore[arg-type]


def test_the_command_prints_overrides_or_json(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resolve", "--parent", str(job), "--action", "export", "--output", "/out"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "results_dir=/out",
        f"export.checkpoint={job}/train/model_best.pth",
        "export.onnx_file=/out/model.onnx",
    ]
    assert main(["resolve", "--parent", str(job), "--action", "prune", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["spec"]["prune.checkpoint"] == f"{job}/train/model_best.pth"
    assert main(["resolve", "--parent", str(job), "--action", "gen_trt_engine"]) == 1
    assert "no .onnx file" in capsys.readouterr().err
