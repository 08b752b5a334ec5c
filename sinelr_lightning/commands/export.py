"""`sinelr export`: the network of a checkpoint as a file that is used without this package."""

import copy
import importlib.util
import io
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sinelr_lightning.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from sinelr_lightning.layers import FactorizedLayer

__all__ = ["export"]

ROWS = 7  # of the example, at which the file is compared with the network
LARGEST_DIFFERENCE = 1e-3  # over the largest output


def export(
    ckpt_path: str = "last",
    out: str = "model.onnx",
    form: Literal["compact", "dense", "thin"] = "compact",
    tolerance: float = 1e-4,
    device: str = "cpu",
) -> None:
    """Write the network of a checkpoint to a file that is used without this package.

    The suffix of `out` names the format:

    - `.pt2`: a program, `torch.export.load(out).module()`; metadata in its extra file `metadata.json`.
    - `.onnx`: a graph from `input` to `output`, for ONNX Runtime and others; metadata in its properties.
    - `.safetensors`: tensors without a program, the `state_dict` of the network in the form asked for; metadata in
      its header. In the compact form their entry `layers` has, for each factorized layer, the formula of its weight
      with the numbers in it, and the weight's shape.

    Programs and graphs take any number of rows from 1. Metadata are this package's version, the task, which weights,
    the form, the number of parameters, and what the task says of input and output; what is not text is JSON.

    A file comes to its place only after it was loaded again and gave the output of the task's network to within 1e-3
    of the largest value.

    Args:
        ckpt_path: A checkpoint, a run folder, or last or best for the newest run.
        out: File to write: .pt2, .onnx or .safetensors.
        form: compact keeps factors and formula, dense has full weights, thin two thin layers where these are smaller.
        tolerance: Largest relative error of a weight in the thin form.
        device: Where to run the network, and where a .pt2 will run: cpu, cuda, cuda:1 …
    """
    if not (tolerance > 0 and math.isfinite(tolerance)):
        raise UserError(f"tolerance must be a positive number, got {tolerance}")
    path = Path(out)
    container = _container(path)
    from sinelr_lightning.commands.loading import usable_device
    from sinelr_lightning.files import atomic_path
    from sinelr_lightning.layers import fold
    from sinelr_lightning.runs import load_checkpoint, load_task, resolve_checkpoint

    checkpoint = resolve_checkpoint(ckpt_path)
    task = load_task(checkpoint).to(usable_device(device))
    parts = task.export_parts()
    network = copy.deepcopy(parts.network).requires_grad_(False)
    if form != "compact":
        network = fold(network, tolerance if form == "thin" else None)
    facts: dict[str, Any] = {
        "task": type(task).__name__,
        "weights": _which_weights(load_checkpoint(checkpoint)),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "form": form,
    }
    if form == "thin":
        facts["tolerance"] = tolerance
    example = _rows(parts.example.to(task.device))
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(container.encode(network, example, _as_text({**parts.metadata, **facts})))
            difference, largest = _compare(container.decode(temporary, network), parts.network, example)
            kilobytes = temporary.stat().st_size / 1000
            if not difference <= LARGEST_DIFFERENCE * largest:
                smaller = f", take a --tolerance below {tolerance:g}" if form == "thin" else ""
                raise UserError(
                    f"{path} is not written: its output differs from the network's by {difference:.1e}, the largest "
                    f"of which is {largest:.1e}{smaller}"
                )
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    sys.stderr.write(
        f"{path}: {form}, {kilobytes:,.1f} kB, {facts['parameters']:,} parameters, {facts['weights']}; loaded again, "
        f"it differs from the network by at most {difference:.1e} at {ROWS} rows, where the output reaches "
        f"{largest:.2g}\n"
    )


def _container(path: Path) -> "Container":
    """The kind of file that the suffix names.

    Raises:
        UserError: there is none, or its packages are not installed.
    """
    container = CONTAINERS.get(path.suffix.lower())
    if container is None:
        raise UserError(f"{path}: a network is written as {', '.join(CONTAINERS)}")
    missing = [name for name in container.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'{path}: {path.suffix} needs {", ".join(missing)}: pip install -e ".[export]"')
    return container


def _which_weights(checkpoint: dict[str, Any]) -> str:
    """Lightning's averaging of weights puts the average in the place of the weights, and its count beside them."""
    averaged = int(checkpoint.get("averaging_state", {}).get("n_averaged", 0)) > 0
    return f"{'averaged weights' if averaged else 'weights'} of step {checkpoint['global_step']:,}"


def _rows(example: "Tensor") -> "Tensor":
    """ROWS rows of the example, from the first again where it has fewer."""
    import torch

    return example[torch.arange(ROWS) % len(example)]


def _as_text(metadata: dict[str, Any]) -> dict[str, str]:
    from sinelr_lightning import __version__

    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in {"sinelr": __version__, **metadata}.items()
    }


def _compare(run: "Callable[[Tensor], Tensor]", network: "nn.Module", example: "Tensor") -> tuple[float, float]:
    """Largest difference between `run` and the network, for all rows and for the first alone; largest output."""
    import torch

    with torch.no_grad():
        truth = network(example).cpu()
        difference = (run(example).cpu() - truth).abs().max()
        alone = (run(example[:1]).cpu() - truth[:1]).abs().max()
    return max(float(difference), float(alone)), float(truth.abs().max())


# -- programs and graphs ---------------------------------------------------------------------------------------------


def _traced(network: "nn.Module", example: "Tensor") -> "tuple[ExportedProgram, Any]":
    """The network as a program of any number of rows, and how that is said."""
    import torch

    shapes = ({0: torch.export.Dim("batch", min=1)},)
    with torch.no_grad():
        program = torch.export.export(network, (example,), dynamic_shapes=shapes)
    program.example_inputs = None  # they would be stored
    for module in program.graph_module.modules():
        for node in module.graph.nodes if hasattr(module, "graph") else ():
            node.meta.pop("stack_trace", None)  # places in the files of this machine
    return program, shapes


def _encode_pt2(network: "nn.Module", example: "Tensor", metadata: dict[str, str]) -> bytes:
    import torch

    program, _ = _traced(network, example)
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={"metadata.json": json.dumps(metadata, ensure_ascii=False)})
    return content.getvalue()


def _decode_pt2(path: Path, network: "nn.Module") -> "Callable[[Tensor], Tensor]":
    import torch

    return torch.export.load(path).module()


def _encode_onnx(network: "nn.Module", example: "Tensor", metadata: dict[str, str]) -> bytes:
    import onnx
    import torch

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


def _decode_onnx(path: Path, network: "nn.Module") -> "Callable[[Tensor], Tensor]":
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"input": x.cpu().numpy()})[0])


# -- tensors alone ---------------------------------------------------------------------------------------------------


def _encode_safetensors(network: "nn.Module", example: "Tensor", metadata: dict[str, str]) -> bytes:
    from safetensors.torch import save

    from sinelr_lightning.layers import FactorizedLayer

    layers = {
        name: _formula(layer)
        for name, layer in network.named_modules(remove_duplicate=False)
        if isinstance(layer, FactorizedLayer)
    }
    # A layer's state may have numbers of its formula, `hyper.gain`; here they stand in `layers`.
    state = {name: tensor for name, tensor in network.state_dict().items() if ".hyper." not in f".{name}"}
    # Cloned, because a tensor that stands in two places is refused.
    tensors = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    return save(tensors, {**metadata, "layers": json.dumps(layers)} if layers else metadata)


def _decode_safetensors(path: Path, network: "nn.Module") -> "Callable[[Tensor], Tensor]":
    """Form the weights as any reader must, from what the file says alone, and put them into dense layers."""
    import torch
    from safetensors import safe_open

    from sinelr_lightning.layers import fold

    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        layers = json.loads(file.metadata().get("layers", "{}"))
    for name, layer in layers.items():
        prefix = f"{name}." if name else ""
        product = tensors.pop(f"{prefix}U") @ tensors.pop(f"{prefix}V").T
        weight = torch.sin(layer["frequency"] * product) / layer["gain"] if "frequency" in layer else product
        tensors[f"{prefix}weight"] = weight.reshape(layer["shape"])
    dense = fold(copy.deepcopy(network))
    dense.load_state_dict(tensors)
    return dense


def _formula(layer: "FactorizedLayer") -> dict[str, Any]:
    """How the weight follows from the tensors `U` and `V` of the layer.

    Raises:
        UserError: a factorization that is neither a sine's nor plain low rank.
    """
    from sinelr_lightning.layers import LowRank, SineLowRank
    from sinelr_lightning.layers.factorized import FactorizedConv

    m, n = layer.weight_shape
    shape = [m, layer.in_channels, *layer.kernel_size] if isinstance(layer, FactorizedConv) else [m, n]
    made = layer.factorization
    if type(made) is SineLowRank:
        numbers = {"frequency": made.omega(n), "gain": made.divisor(n)}
        return {"formula": "W = sin(frequency * U @ V.T) / gain", **numbers, "shape": shape}
    if type(made) is LowRank:
        return {"formula": "W = U @ V.T", "shape": shape}
    raise UserError(f"the compact form of a {type(made).__name__} has no formula for .safetensors: take --form dense")


@dataclass(frozen=True)
class Container:
    """A kind of file: the packages it needs, what makes its content, and what makes it runnable again."""

    packages: tuple[str, ...]
    encode: "Callable[[nn.Module, Tensor, dict[str, str]], bytes]"
    decode: "Callable[[Path, nn.Module], Callable[[Tensor], Tensor]]"


CONTAINERS = {
    ".pt2": Container((), _encode_pt2, _decode_pt2),
    ".onnx": Container(("onnx", "onnxscript", "onnxruntime"), _encode_onnx, _decode_onnx),
    ".safetensors": Container(("safetensors",), _encode_safetensors, _decode_safetensors),
}
