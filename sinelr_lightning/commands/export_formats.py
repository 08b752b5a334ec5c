"""Networks as the content of files, and such files back as something that runs."""

import copy
import importlib.util
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from sinelr_lightning.errors import UserError
from sinelr_lightning.layers import FactorizedLayer, LowRank, SineLowRank
from sinelr_lightning.layers.factorized import FactorizedConv

__all__ = ["Format", "format_of"]

# -- programs and graphs ---------------------------------------------------------------------------------------------


def _traced(network: nn.Module, example: Tensor) -> tuple[ExportedProgram, Any]:
    """The network as a program of any number of rows, and how that is said."""
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    with torch.no_grad():
        program = torch.export.export(network, (example,), dynamic_shapes=shapes)
    program.example_inputs = None  # they would be stored
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)  # places in the files of this machine
    return program, shapes


def _encode_pt2(network: nn.Module, example: Tensor, metadata: dict[str, str]) -> bytes:
    program, _ = _traced(network, example)
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={"metadata.json": json.dumps(metadata, ensure_ascii=False)})
    return content.getvalue()


def _decode_pt2(path: Path, network: nn.Module) -> Callable[[Tensor], Tensor]:
    return torch.export.load(path).module()


def _encode_onnx(network: nn.Module, example: Tensor, metadata: dict[str, str]) -> bytes:
    import onnx

    program, shapes = _traced(network, example)
    # The optimiser would multiply the factors out: a file of the size of the dense one, with the sine still in it.
    graph = torch.onnx.export(
        program,
        dynamic_shapes=shapes,
        input_names=["input"],
        output_names=["output"],
        dynamo=True,
        optimize=False,
        verbose=False,
    )
    assert graph is not None
    proto = graph.model_proto
    inside = proto.graph
    for part in (*inside.node, *inside.value_info, *inside.initializer, *inside.input, *inside.output):
        part.ClearField("metadata_props")  # the exporter's notes, longer than the weights of a small network
    onnx.helper.set_model_props(proto, metadata)
    return proto.SerializeToString()


def _decode_onnx(path: Path, network: nn.Module) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"input": x.cpu().numpy()})[0])


# -- tensors alone ---------------------------------------------------------------------------------------------------


def _encode_safetensors(network: nn.Module, example: Tensor, metadata: dict[str, str]) -> bytes:
    from safetensors.torch import save

    layers = {
        name: _formula(layer)
        for name, layer in network.named_modules(remove_duplicate=False)
        if isinstance(layer, FactorizedLayer)
    }
    # Cloned, because a tensor that stands in two places is refused.
    tensors = {
        name: tensor.contiguous().clone() for name, tensor in network.state_dict().items() if not _is_number(name)
    }
    return save(tensors, {**metadata, "layers": json.dumps(layers)} if layers else metadata)


def _decode_safetensors(path: Path, network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Have the network use weights that are formed as any reader must, from what the file says alone."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        layers = json.loads(file.metadata().get("layers", "{}"))
    read = copy.deepcopy(network)
    numbers_of_layers = {name: tensor for name, tensor in network.state_dict().items() if _is_number(name)}
    read.load_state_dict({**tensors, **numbers_of_layers})
    for name, numbers in layers.items():
        layer = read.get_submodule(name)
        assert isinstance(layer, FactorizedLayer)
        left, right = layer.factors()
        weight = left @ right.T
        if "frequency" in numbers:
            weight = torch.sin(numbers["frequency"] * weight) / numbers["gain"]
        layer._served = (weight,)  # as `cached_weights` does
    return read


def _is_number(name: str) -> bool:
    """Whether an entry of a state is a number of a layer's formula, `hyper.gain`; in a file they are metadata."""
    return ".hyper." in f".{name}"


def _formula(layer: FactorizedLayer) -> dict[str, Any]:
    """How the weight follows from the tensors `U` and `V` of the layer.

    Raises:
        UserError: a factorization that is neither a sine's nor plain low rank.
    """
    m, n = layer.weight_shape
    shape = [m, layer.in_channels, *layer.kernel_size] if isinstance(layer, FactorizedConv) else [m, n]
    made = layer.factorization
    if type(made) is SineLowRank:
        numbers = {"frequency": made.omega(n), "gain": made.divisor(n)}
        return {"formula": "W = sin(frequency * U @ V.T) / gain", **numbers, "shape": shape}
    if type(made) is LowRank:
        return {"formula": "W = U @ V.T", "shape": shape}
    raise UserError(f"the compact form of a {type(made).__name__} has no formula for .safetensors: take --form dense")


# -- all formats -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """A kind of file: the packages it needs, what makes its content, and what makes a file runnable again.

    `encode(network, example, metadata)` is the content; `decode(path, network)` maps inputs to outputs, where a file
    without a program runs in a copy of `network`.
    """

    packages: tuple[str, ...]
    encode: Callable[[nn.Module, Tensor, dict[str, str]], bytes]
    decode: Callable[[Path, nn.Module], Callable[[Tensor], Tensor]]


FORMATS = {
    ".pt2": Format((), _encode_pt2, _decode_pt2),
    ".onnx": Format(("onnx", "onnxscript", "onnxruntime"), _encode_onnx, _decode_onnx),
    ".safetensors": Format(("safetensors",), _encode_safetensors, _decode_safetensors),
}


def format_of(path: Path) -> Format:
    """Give the format that the suffix names.

    Raises:
        UserError: there is none, or packages that it needs are not installed.
    """
    found = FORMATS.get(path.suffix.lower())
    if found is None:
        raise UserError(f"{path}: a network is written as {', '.join(FORMATS)}")
    missing = [name for name in found.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'{path} needs {", ".join(missing)}: pip install -e ".[export]"')
    return found
