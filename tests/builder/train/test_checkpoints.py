# SPDX-License-Identifier: Apache-2.0
import collections
import io
import os
import pickle
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ocdserve.builder.train.checkpoints import load_weights, read_checkpoint, read_pruned_module, read_weights
from ocdserve.contract import InvalidInputError

CONV = torch.arange(6.0).reshape(2, 3, 1, 1)
BIAS = torch.tensor([7.0, 8.0])


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def assert_is_the_network(weights: dict[str, Tensor]) -> None:
    assert list(weights) == ["neck.in5.weight", "head.binarize.3.bias"]
    assert weights["neck.in5.weight"].tolist() == CONV.tolist()
    assert weights["head.binarize.3.bias"].tolist() == [7.0, 8.0]


@pytest.mark.parametrize(
    "names",
    [
        ("neck.in5.weight", "head.binarize.3.bias"),
        ("model.neck.in5.weight", "model.head.binarize.3.bias"),
        ("module.neck.in5.weight", "module.head.binarize.3.bias"),
        ("model.module.neck.in5.weight", "model.module.head.binarize.3.bias"),
        ("model.module.decoder.in5.weight", "model.module.decoder.binarize.3.bias"),
    ],
)
@pytest.mark.parametrize("wrapped", [True, False], ids=["state_dict", "bare"])
def test_prefixes_and_names_of_the_original_project_become_taos(
    names: tuple[str, str], wrapped: bool, tmp_path: Path
) -> None:
    state = collections.OrderedDict(zip(names, (CONV, BIAS), strict=True))
    path = saved(tmp_path / "w.pth", {"state_dict": state, "epoch": 3} if wrapped else state)
    assert_is_the_network(read_weights(path))


def test_a_file_from_before_pytorch_1_6_is_read(tmp_path: Path) -> None:
    state = {"model.neck.in5.weight": CONV, "model.head.binarize.3.bias": BIAS}
    content = {"state_dict": state, "best": np.float64(0.5)}
    path = saved(tmp_path / "w.pth", content, _use_new_zipfile_serialization=False)
    assert_is_the_network(read_weights(path))


def test_parts_that_nothing_reads_are_left_out(tmp_path: Path) -> None:
    state = {"backbone.fc.weight": CONV, "backbone.smooth.weight": CONV, "backbone.fcos.weight": CONV}
    assert list(read_weights(saved(tmp_path / "w.pth", state))) == ["backbone.fcos.weight"]


def test_averaged_weights_are_chosen_by_argument_and_nothing_is_written(tmp_path: Path) -> None:
    state = {"model.neck.in5.weight": CONV, "model_ema.module.neck.in5.weight": CONV + 1}
    path = saved(tmp_path / "w.pth", {"state_dict": state})
    assert read_weights(path)["neck.in5.weight"].tolist() == CONV.tolist()
    assert read_weights(path, averaged=True)["neck.in5.weight"].tolist() == (CONV + 1).tolist()
    assert list(tmp_path.iterdir()) == [path]
    del state["model_ema.module.neck.in5.weight"]
    with pytest.raises(InvalidInputError, match=r"holds no averaged weights \(model_ema\.module\.\*\)"):
        read_weights(saved(path, {"state_dict": state}), averaged=True)


@pytest.fixture
def declare(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, type], None]]:
    """Puts a class into a module that exists until the fixture's end, or until `monkeypatch.undo`."""

    def declared(package: str, kind: type) -> None:
        kind.__module__, kind.__qualname__ = package, kind.__name__
        monkeypatch.setitem(sys.modules, package, sys.modules.get(package, ModuleType(package)))
        monkeypatch.setattr(sys.modules[package], kind.__name__, kind, raising=False)

    yield declared
    monkeypatch.undo()


def test_configurations_and_numbers_of_a_training_do_not_hinder_reading(
    declare: Callable[[str, type], None], tmp_path: Path
) -> None:
    omegaconf = pytest.importorskip("omegaconf")

    class AttributeDict(dict[str, Any]):
        """As Lightning's."""

    declare("pytorch_lightning", AttributeDict)
    attributes = AttributeDict(lr=0.1)
    content = {
        "state_dict": {"model.neck.in5.weight": CONV, "model.head.binarize.3.bias": BIAS},
        "hyper_parameters": attributes,
        "config": omegaconf.OmegaConf.create({"train": {"epochs": [1, 2]}}),
        "metrics": {"hmean": np.float64(0.75), "train_loss": torch.tensor(2.0)},
        "path": Path("x"),
        "counts": collections.defaultdict(list, {"a": [1]}),
    }
    path = saved(tmp_path / "w.pth", content)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    assert_is_the_network(read_weights(path))
    assert read_checkpoint(path)["metrics"]["train_loss"] == 2.0


class Attack:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call = (call, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("reader", [read_weights, read_pruned_module])
@pytest.mark.parametrize(
    ("call", "named"), [(os.system, rf"it calls {os.name}\.system"), (eval, r"it calls builtins\.eval")]
)
def test_a_file_that_runs_commands_is_refused_and_runs_none(
    call: Any, named: str, reader: Any, old: bool, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    command = f"touch {flag}" if call is os.system else f"open({str(flag)!r}, 'w')"
    content = {"state_dict": {"neck.in5.weight": CONV}, "x": Attack(call, command)}
    path = saved(tmp_path / "w.pth", content, _use_new_zipfile_serialization=not old)
    with pytest.raises(InvalidInputError, match=named):
        reader(path)
    assert not flag.exists()


def torchscript(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"")
        archive.writestr("x/constants.pkl", b"")


def tar_of_weights(path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"neck.in5.weight": CONV}, buffer)
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("w.pth")
        member.size = len(buffer.getvalue())
        archive.addfile(member, io.BytesIO(buffer.getvalue()))


def zip_of_a_picture(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jpg", b"")


def cut_off(path: Path) -> None:
    torch.save({"neck.in5.weight": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-100])


def cut_off_in_the_middle(path: Path) -> None:
    saved(path, {"neck.in5.weight": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_bytes(b"\x08\x00\x00\x00onnx"), r"is not a file of torch\.save; .* decrypted where"),
        (torchscript, r"is a TorchScript program, not weights; save the module's state_dict\(\)"),
        (tar_of_weights, r"is an archive, not a checkpoint: extract it first"),
        (zip_of_a_picture, r"is an archive, not a checkpoint: extract it first"),
        (cut_off, "cannot be read as a checkpoint"),
        (cut_off_in_the_middle, "is incomplete, its end is missing: copy or download it again"),
        (lambda path: saved(path, [CONV]), "must hold a dictionary.* it holds a list"),
        (lambda path: saved(path, {"epoch": 3}), "holds no weights"),
        (lambda path: saved(path, {"state_dict": 3}), "holds no weights"),
        (
            lambda path: saved(path, {"state_dict_encrypted": bool, "state_dict": b"secret"}),
            "is encrypted. Save its weights without a key where the key is",
        ),
        (
            lambda path: saved(path, nn.Conv2d(3, 2, 1)),
            r"is a pickled module of the class torch\.nn\.modules\.conv\.Conv2d.*load_pruned_graph=true, or convert",
        ),
    ],
)
def test_other_files_are_refused_with_the_remedy(write: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    write(path)
    with pytest.raises(InvalidInputError, match=message):
        read_weights(path)


@pytest.fixture
def pruned(declare: Callable[[str, type], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A pickled module of classes that do not exist any more."""

    class DeformConv2d(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(CONV)
            self.register_buffer("kept", torch.tensor([1.0]))
            self.register_buffer("scratch", torch.tensor([2.0]), persistent=False)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(DeformConv2d(), nn.BatchNorm2d(2), nn.ReLU())
            self.neck = nn.Conv2d(2, 1, 1)
            self.neck.bias = None
            self.activation = nn.functional.relu
            self.name = "deformable_resnet18_FPN_DBHead"
            self.hooks = {"paths": {Path("x")}}

    for kind in (DeformConv2d, Model):
        declare("nvidia_tao_pytorch", kind)
    path = saved(tmp_path / "pruned_0.1.pth", Model())
    monkeypatch.undo()
    with pytest.raises(ModuleNotFoundError, match="nvidia_tao_pytorch"):
        torch.load(path, weights_only=False)
    return path


def test_a_pruned_module_is_read_without_its_classes(pruned: Path) -> None:
    weights = read_pruned_module(pruned)
    assert {name: list(value.shape) for name, value in weights.items()} == {
        "backbone.0.weight": [2, 3, 1, 1],
        "backbone.0.kept": [1],
        "backbone.1.weight": [2],
        "backbone.1.bias": [2],
        "backbone.1.running_mean": [2],
        "backbone.1.running_var": [2],
        "backbone.1.num_batches_tracked": [],
        "neck.weight": [1, 2, 1, 1],
    }
    assert weights["backbone.0.weight"].tolist() == CONV.tolist()


def test_a_checkpoint_is_no_pruned_module_and_a_pruned_module_no_checkpoint(pruned: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"is a pickled module of the class nvidia_tao_pytorch\.Model"):
        read_weights(pruned)
    with pytest.raises(InvalidInputError, match=r"is no pickled module, which model\.pruned_graph_path takes"):
        read_pruned_module(saved(tmp_path / "w.pth", {"state_dict": {"neck.in5.weight": CONV}}))


def test_a_module_that_contains_itself_is_refused(tmp_path: Path) -> None:
    module = nn.Sequential()
    module._modules["again"] = module
    with pytest.raises(InvalidInputError, match="nested deeper than 100, or contain themselves"):
        read_pruned_module(saved(tmp_path / "w.pth", module))


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))


def test_loaded_weights_are_the_networks_and_counters_may_be_missing() -> None:
    source, target = network(), network()
    source(torch.rand(2, 3, 4, 4))
    weights = {name: value for name, value in source.state_dict().items() if "num_batches" not in name}
    report = load_weights(target, weights)
    assert (report.missing, report.unexpected, str(report)) == ((), (), "")
    assert target[1].running_mean.tolist() == source[1].running_mean.tolist()
    assert int(target[1].num_batches_tracked) == 0


def test_what_does_not_fit_is_reported_or_refused() -> None:
    weights = {"0.weight": CONV, "head.weight": CONV}
    target = network()
    report = load_weights(target, weights, strict=False)
    assert report.missing == ("0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var")
    assert report.unexpected == ("head.weight",)
    assert str(report) == (
        "the weights lack 0.bias, 1.weight, 1.bias, 1.running_mean, 1.running_var; the network lacks head.weight"
    )
    assert target[0].weight.tolist() == CONV.tolist()
    with pytest.raises(
        InvalidInputError, match=r"the weights do not fit the network: the weights lack 0\.bias, .*backbone"
    ):
        load_weights(target, weights)
    with pytest.raises(InvalidInputError, match="do not fit"):
        load_weights(target, {"other": CONV}, strict=False)


def test_weights_of_another_shape_are_refused_and_nothing_is_changed() -> None:
    target = network()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    weights = dict(network().state_dict()) | {"1.bias": torch.zeros(5)}
    with pytest.raises(InvalidInputError, match=r"1\.bias is \[5\] in the file and \[2\] in the network"):
        load_weights(target, weights, strict=False)
    for name, value in target.state_dict().items():
        assert torch.equal(value, before[name])
