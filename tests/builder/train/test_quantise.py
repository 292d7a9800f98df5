# SPDX-License-Identifier: Apache-2.0
"""Rules of quantisation, and what torchao and ModelOpt make of them where they are installed."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from ocdserve.builder.train.quantise import (
    QuantRule,
    choose,
    layers_of,
    quantise_modelopt,
    quantise_torchao,
    read_torchao,
    restore_modelopt,
    save_modelopt,
    save_torchao,
)
from ocdserve.contract import InvalidInputError, UnavailableError

LAYERS = {"backbone.conv1": "Conv2d", "blocks.0.attn.q": "Linear", "blocks.0.mlp.fc1": "Linear", "head.fc": "Linear"}


@pytest.mark.parametrize(
    ("rules", "skipped", "chosen"),
    [
        ([("*", "int8")], [], {"backbone.conv1", "blocks.0.attn.q", "blocks.0.mlp.fc1", "head.fc"}),
        ([("Linear", "int8")], [], {"blocks.0.attn.q", "blocks.0.mlp.fc1", "head.fc"}),
        ([("linear", "int8")], [], set()),
        ([("Linear", "int8"), ("*.mlp.*", "native")], [], {"blocks.0.attn.q", "head.fc"}),
        ([("*.mlp.*", "native"), ("Linear", "int8")], [], {"blocks.0.attn.q", "blocks.0.mlp.fc1", "head.fc"}),
        ([("Linear", "int8")], ["head.*", "Conv2d"], {"blocks.0.attn.q", "blocks.0.mlp.fc1"}),
        ([], [], set()),
    ],
)
def test_later_rules_win_native_takes_out_and_skipped_names_come_last(
    rules: list[tuple[str, str]], skipped: list[str], chosen: set[str]
) -> None:
    assert set(choose(LAYERS, [QuantRule(*rule) for rule in rules], skipped)) == chosen


def test_a_later_rule_gives_the_type() -> None:
    rules = [QuantRule("Linear", "int8"), QuantRule("head.*", "fp8_e4m3fn")]
    chosen = choose(LAYERS, rules)
    assert (chosen["blocks.0.attn.q"].weights, chosen["head.fc"].weights) == ("int8", "fp8_e4m3fn")


def test_unknown_types_and_empty_patterns_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="the dtype of weights of 'Linear' must be one of int8, fp8_e4m3fn"):
        QuantRule("Linear", "int4")
    with pytest.raises(InvalidInputError, match="module_name of a rule must name layers"):
        QuantRule("", "int8")


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Linear(16, 32), nn.Linear(32, 4)).eval()


class TestTorchao:
    @pytest.fixture(autouse=True)
    def _needs_torchao(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip("torchao.quantization")

    def test_weights_of_linear_layers_have_8_bits_in_the_file_and_their_values_are_read(
        self, network: nn.Module, tmp_path: Path
    ) -> None:
        chosen = choose(layers_of(network), [QuantRule("*", "int8"), QuantRule("3", "native")])
        state, names = quantise_torchao(network, chosen, {})
        assert names == ["2"] and type(network[2].weight) is nn.Parameter
        path = tmp_path / "quantized_model_torchao.pth"
        save_torchao(path, state, names)
        assert torch.load(path, weights_only=True)["quantised"] == ["2"]
        weights = read_torchao(path)
        assert weights is not None and weights.keys() == network.state_dict().keys()
        error = (weights["2.weight"] - network[2].weight).abs().max(dim=1).values
        step = network[2].weight.abs().max(dim=1).values / 127
        assert error.max() > 0 and (error <= 0.6 * step).all()
        assert torch.equal(weights["3.weight"], network[3].weight)
        torch.save(network.state_dict(), path)
        assert read_torchao(path) is None

    def test_unknown_options_are_refused(self, network: nn.Module) -> None:
        with pytest.raises(InvalidInputError, match=r"quantize\.backend_kwargs: .*unexpected keyword argument 'bits'"):
            quantise_torchao(network, {"2": QuantRule("Linear", "int8")}, {"bits": 4})


def test_a_checkpoint_whose_spec_names_torchao_is_not_one_of_torchao(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "model_best.pth"
    torch.save({"state_dict": network.state_dict(), "config": {"quantize": {"backend": "torchao"}}}, path)
    assert read_torchao(path) is None


def test_a_file_in_which_torchao_quantised_nothing_is_refused(network: nn.Module) -> None:
    with pytest.raises(InvalidInputError, match=r"torchao quantises weights of linear layers only, and 0 is none"):
        quantise_torchao(network, {"0": QuantRule("Conv2d", "int8")}, {})
    with pytest.raises(InvalidInputError, match=r"no rule of quantize\.layers matches a layer"):
        quantise_torchao(network, {}, {})


class TestModelOpt:
    @pytest.fixture(autouse=True)
    def _needs_modelopt(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip("modelopt.torch.quantization")

    @pytest.mark.filterwarnings("ignore:Cannot find transformers")
    def test_layers_simulate_8_bits_and_the_file_restores_them(self, network: nn.Module, tmp_path: Path) -> None:
        convolutions = nn.Sequential(network[0], nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
        images = torch.rand(2, 3, 16, 16)
        chosen = choose(layers_of(convolutions), [QuantRule("Conv2d", "int8", "int8"), QuantRule("2", "native")])
        quantised, names = quantise_modelopt(convolutions, chosen, lambda module: module(images))
        assert names == ["0"]
        error = (quantised(images) - convolutions(images)).abs().max()
        assert 0 < error < 0.05
        path = tmp_path / "quantized_model_modelopt.pytorch.pth"
        save_modelopt(path, quantised)
        fresh = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
        assert torch.equal(restore_modelopt(path, fresh)(images), quantised(images))


def test_a_missing_tool_says_how_to_install_it(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ocdserve.builder.train.quantise.import_module", _missing)
    with pytest.raises(UnavailableError, match=r"quantize.backend=torchao needs torchao: `pip install 'torchao'`"):
        quantise_torchao(network, {"2": QuantRule("Linear", "int8")}, {})
    with pytest.raises(UnavailableError, match=r"backend=modelopt.pytorch needs modelopt: `pip install 'ocdserve\[mod"):
        quantise_modelopt(network, {"0": QuantRule("Conv2d", "int8")}, lambda module: None)


def _missing(name: str) -> None:
    raise ImportError(name)
