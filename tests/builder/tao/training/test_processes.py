# SPDX-License-Identifier: Apache-2.0
"""A training in two processes of a CPU."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ocdserve.builder.tao.training.network import network_of_checkpoint
from ocdserve.builder.tao.training.trainer.processes import run_in_processes
from ocdserve.builder.tao.training.trainer.validation import TorchNetwork, validator
from ocdserve.contract import InvalidInputError, OcdserveError

from .small_training import differing, loaded, overrides, run_train, spec_of
from .test_train import status

TWO = ("train.num_gpus=2", "ocdserve.device=cpu", "ocdserve.threads=1", "dataset.train_dataset.loader.batch_size=1")
# Of which an untrained network finds some.
THRESHOLDS = ("train.post_processing.args.thresh=0.3", "train.post_processing.args.box_thresh=0")
# A job in the background ignores SIGINT, and what it starts does so too.
HEARING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
os.execv(sys.argv[1], sys.argv[1:])
"""
LAST = "model_epoch_001_step_00004.pth"


def rank() -> tuple[str, str]:
    return os.environ["LOCAL_RANK"], os.environ["MASTER_ADDR"]


def fail() -> None:
    if os.environ["LOCAL_RANK"] == "1":
        raise InvalidInputError("name another file")
    time.sleep(600)


def die() -> None:
    if os.environ["LOCAL_RANK"] == "1":
        os._exit(3)
    time.sleep(600)


@pytest.mark.long
class TestProcesses:
    def test_the_first_one_s_result_is_returned(self) -> None:
        assert run_in_processes(rank, 2) == ("0", "127.0.0.1")
        assert "LOCAL_RANK" not in os.environ

    def test_the_failure_of_any_ends_all(self) -> None:
        started = time.monotonic()
        with pytest.raises(OcdserveError, match="name another file"):
            run_in_processes(fail, 2)
        with pytest.raises(OcdserveError, match="process 1 of the training ended without a result"):
            run_in_processes(die, 2)
        assert time.monotonic() - started < 300


class TestTwoProcesses:
    @pytest.fixture(scope="class")
    @classmethod
    def trained(cls, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
        """The results of two equal trainings."""
        folders = [tmp_path_factory.mktemp("ddp") / "results" for _ in range(2)]
        assert [run_train(folder, *TWO, *THRESHOLDS) for folder in folders] == [0, 0]
        return folders

    def test_it_repeats_itself(self, trained: list[Path]) -> None:
        one, other = (loaded(folder / LAST) for folder in trained)
        assert differing(one["state_dict"], other["state_dict"]) == []
        losses = [
            [line["kpi"]["train_loss"] for line in status(folder) if line["message"] == "Train metrics generated."]
            for folder in trained
        ]
        assert losses[0] == losses[1] and len(losses[0]) == 2

    def test_figures_are_those_of_all_images(self, trained: list[Path]) -> None:
        """Fault 10: in TAO, each process measures its part, and the means are averaged."""
        spec = spec_of(trained[0], *THRESHOLDS)
        best = loaded(trained[0] / "model_best.pth")
        network = network_of_checkpoint(spec, trained[0] / "model_best.pth", "evaluate.checkpoint")
        counts = validator(spec, spec.train.post_processing.args).measure(TorchNetwork(network, torch.device("cpu")))
        assert counts.truths == 4 and counts.detections > 0
        assert (best["metrics"]["precision"], best["metrics"]["recall"]) == (counts.precision, counts.recall)

    def test_the_first_process_alone_writes(self, trained: list[Path]) -> None:
        """Fault 10: in TAO, every process writes model_best.pth."""
        messages = [line["message"] for line in status(trained[0])]
        assert messages.count("Eval metrics generated.") == messages.count("Training loop in progress") == 2
        assert (messages[0], messages[-2]) == ("Starting OCDNet train.", "Train finished successfully.")
        assert status(trained[0])[-2]["kpi"] == status(trained[0])[-3]["kpi"]
        assert len(list((trained[0] / "lightning_logs" / "version_1").glob("events*"))) == 1

    @pytest.mark.long
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_a_signal_leaves_a_checkpoint(self, tmp_path: Path, number: int, code: int) -> None:
        """As from a terminal, all processes get SIGINT; SIGTERM is sent to the first."""
        folder = tmp_path / "stopped"
        folder.mkdir()
        spec = tmp_path / "spec.yaml"
        spec.write_text("train:\n")
        endless = [f"train.{name}=100000" for name in ("num_epochs", "validation_interval", "checkpoint_interval")]
        command = [
            sys.executable,
            "-m",
            "ocdserve.builder.tao",
            "train",
            "-e",
            str(spec),
            *overrides(folder, *TWO, *endless),
        ]
        process = subprocess.Popen([sys.executable, "-c", HEARING, *command], start_new_session=True)
        try:
            until = time.monotonic() + 120
            while not (folder / "status.json").is_file() or len(status(folder)) < 6:
                assert process.poll() is None and time.monotonic() < until
                time.sleep(0.1)
            if number == signal.SIGINT:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
            assert process.wait(90) == code
        finally:
            process.kill()
            process.wait()
        assert status(folder)[-1]["status"] == "FAILURE"
        latest = loaded(folder / "ocd_model_latest.pth")
        assert latest["global_step"] >= 2 and latest["optimizer_states"]


def test_a_process_that_cannot_be_started_is_reported() -> None:
    with pytest.raises(Exception, match="pickle"):
        run_in_processes(lambda: 0, 2)
