# SPDX-License-Identifier: Apache-2.0
"""The network of a spec, and of a checkpoint: of NVIDIA's or ocdserve's training, pruned or quantised."""

from pathlib import Path

from ocdserve.builder.tao.inputs.dataset import checkpoint_kind, is_archive
from ocdserve.builder.tao.spec import Spec
from ocdserve.builder.train.checkpoints import AVERAGED, Weights, read_checkpoint, weights_of
from ocdserve.builder.train.networks.model import NetworkOptions, OcdNet
from ocdserve.builder.train.pruned_graph import build_from_pruned, network_of
from ocdserve.builder.train.quantise import read_torchao, restore_modelopt
from ocdserve.contract import InvalidInputError

_ENGINES = (".trt", ".engine", ".plan")
# Actions that only run a network.
_EXECUTING = ("evaluate", "inference")


def network_options(spec: Spec) -> NetworkOptions:
    """Options of the network that `model` describes; of a new one, `ocdserve.width` is the width."""
    model = spec.model
    return NetworkOptions(
        backbone=model.backbone,
        width=spec.ocdserve.width,
        k=model.k,
        enlarge_feature_map_size=model.enlarge_feature_map_size,
        fuse_qkv_proj=model.fuse_qkv_proj,
        activation_checkpoint=model.activation_checkpoint,
    )


def pruned_graph(spec: Spec) -> OcdNet | None:
    """The pruned network that training starts from, or a checkpoint belongs to; None without `model.load_pruned_graph`.

    Raises:
        InvalidInputError: `model.pruned_graph_path` is no pruned network.
    """
    if not spec.model.load_pruned_graph:
        return None
    path = Path(spec.model.pruned_graph_path)
    if not path.is_file():
        # Begins as TAO's message does, for programs that look for it.
        raise InvalidInputError(
            "The load_pruned_graph is set to True. But the pruned_graph_path is not available. Set "
            f"model.pruned_graph_path to the file that `ocdnet prune` wrote; got {spec.model.pruned_graph_path!r}"
        )
    return build_from_pruned(path)


def network_of_checkpoint(spec: Spec, path: Path, key: str) -> OcdNet:
    """The network of a checkpoint, in inference mode; its layers are as wide as the weights.

    All weights must be there and none may be left over. Only the counters of batches may be missing, as in TAO's
    evaluation; its inference asks for these as well.

    Args:
        spec: `model` is the kind of network.
        path: Checkpoint.
        key: Dotted key of the path, for messages.

    Raises:
        InvalidInputError: The file is not a checkpoint, or of another network.
    """
    check_checkpoint(path, key)
    weights, is_simulated = _weights(path)
    graph = pruned_graph(spec)
    if graph is not None:
        _check_shapes(weights, graph, path, spec)
    network = network_of(network_options(spec), weights)
    if not is_simulated:
        return network.eval()
    if key.split(".")[0] not in _EXECUTING:
        raise InvalidInputError(
            f"{key}: {path} simulates 8 bits with ModelOpt's layers, which only {' and '.join(_EXECUTING)} take: name "
            "the checkpoint that was quantised. For an INT8 engine run gen_trt_engine on its export"
        )
    restored: OcdNet = restore_modelopt(path, network)
    return restored.eval()


def _weights(path: Path) -> tuple[Weights, bool]:
    """The weights of a checkpoint, quantised or not, and whether ModelOpt has quantised it."""
    of_torchao = read_torchao(path)
    if of_torchao is not None:
        return of_torchao, False
    content = read_checkpoint(path)
    if "modelopt_state" not in content:
        # TAO leaves averaged weights in a file of their own, <name>_ema.pth, under their long names.
        state = content.get("state_dict", content)
        averaged = bool(state) and all(AVERAGED in str(name) for name in state)
        return weights_of(content, path, averaged=averaged), False
    state = content.get("model_state_dict")
    items = state.items() if isinstance(state, dict) else ()
    return {name: value for name, value in items if "_quantizer." not in name}, True


def check_checkpoint(path: Path, key: str) -> None:
    """Raise InvalidInputError if a path is something else than a checkpoint, with what to do with it."""
    action = key.split(".")[0]
    if path.suffix.lower() in _ENGINES or (path / "detector.json").is_file() or path.suffix.lower() == ".onnx":
        what = "an ONNX file" if path.suffix.lower() == ".onnx" else "a bundle" if path.is_dir() else "an engine"
        remedy = (
            f"set {action}.trt_engine to it, and leave {key} out"
            if action in _EXECUTING
            else "name the checkpoint that it was exported from"
        )
        raise InvalidInputError(f"{key}: {path} is {what}, not a checkpoint of PyTorch: {remedy}")
    if not path.is_file():
        raise InvalidInputError(f"{key}: there is no file {str(path)!r}")
    if checkpoint_kind(path) is None:
        what = "is an archive; extract it first" if is_archive(path) else "is not a checkpoint of PyTorch"
        raise InvalidInputError(f"{key}: {path} {what}")


def _check_shapes(weights: Weights, graph: OcdNet, path: Path, spec: Spec) -> None:
    for name, value in graph.state_dict().items():
        if name in weights and weights[name].shape != value.shape:
            raise InvalidInputError(
                f"{path} was not trained from model.pruned_graph_path {spec.model.pruned_graph_path}: {name} is "
                f"{list(weights[name].shape)} in the former and {list(value.shape)} in the latter. Name the pruned "
                "network that it was trained from, or leave model.load_pruned_graph out: its layers are as wide as "
                "its weights"
            )
