"""`sinelr export`: the network of a checkpoint as a file that is used without this package."""

import copy
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sinelr_lightning.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sinelr_lightning.tasks.base import Task

__all__ = ["export"]

ROWS = 7  # of the example, at which the file is compared with the network
LARGEST_DIFFERENCE = 1e-3  # over the largest output


def export(
    ckpt_path: str = "last",
    out: str | None = None,
    form: Literal["compact", "dense", "thin"] = "compact",
    tolerance: float = 1e-4,
    device: str = "cpu",
    format: Literal["adapter", "merged", "lora"] | None = None,
    rank: int | None = None,
    energy: float = 0.9,
) -> None:
    """Write the network of a checkpoint to a file that is used without this package.

    Of a language model's adapter, --format names the kind of folder:

    - `adapter`: for PEFT, `PeftModel.from_pretrained(base, folder)` after `import sinelr_lightning`.
    - `merged`: a whole model, without adapters, for transformers and all that read its folders.
    - `lora`: the nearest plain LoRA of rank --rank, by a truncated SVD of the update, for tools that know LoRA alone.

    Of all others, the suffix of `out` names the format:

    - `.pt2`: a program, `torch.export.load(out).module()`; metadata in its extra file `metadata.json`.
    - `.onnx`: a graph from `input` to `output`, for ONNX Runtime and others; metadata in its properties.
    - `.safetensors`: tensors without a program, the `state_dict` of the network in the form asked for; metadata in
      its header. In the compact form their entry `layers` has, for each factorized layer, the formula of its weight
      with the numbers in it, and the weight's shape; an attention's `in_proj.q`, `.k`, `.v` stand one above the other
      in its `in_proj_weight`.

    Programs and graphs take any number of rows from 1. Metadata are this package's version, the task, which weights,
    the form, the number of parameters, and what the task says of input and output; what is not text is JSON.

    A file comes to its place only after it was loaded again and gave the output of the task's network to within 1e-3
    of the largest value.

    Args:
        ckpt_path: A checkpoint, a run folder, or last or best for the newest run.
        out: File to write: .pt2, .onnx (model.onnx) or .safetensors; of an adapter the folder (called like --format).
        form: compact keeps factors and formula, dense has full weights, thin two thin layers where these are smaller.
        tolerance: Largest relative error of a weight in the thin form.
        device: Where to run the network, and where a .pt2 will run: cpu, cuda, cuda:1 …
        format: Of a language model's adapter: adapter, merged or lora.
        rank: Of a plain LoRA; four times the adapter's by default. A LowRank adapter is one, of its own rank.
        energy: Smallest share of the update's squared norm that a plain LoRA must keep.
    """
    if not (tolerance > 0 and math.isfinite(tolerance)):
        raise UserError(f"tolerance must be a positive number, got {tolerance}")
    from sinelr_lightning.commands.export_formats import format_of
    from sinelr_lightning.commands.loading import usable_device
    from sinelr_lightning.layers import fold
    from sinelr_lightning.runs import load_checkpoint, load_task, resolve_checkpoint

    if format is not None:
        _export_adapter(load_task(resolve_checkpoint(ckpt_path)), out, format, rank, energy)
        return
    path = Path(out or "model.onnx")
    written_as = format_of(path)
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
    content = written_as.encode(network, example, _as_text({**parts.metadata, **facts}))

    def compare(written: Path) -> tuple[float, float]:
        return _compare(written_as.decode(written, network), parts.network, example)

    difference, largest = _write(path, content, compare, "; take a smaller --tolerance" if form == "thin" else "")
    sys.stderr.write(
        f"{path}: {form}, {len(content) / 1000:,.1f} kB, {facts['parameters']:,} parameters, {facts['weights']}; "
        f"read back, its output, up to {largest:.2g}, differs from the network's by at most {difference:.1e}\n"
    )


def _export_adapter(
    task: "Task", out: str | None, format: Literal["adapter", "merged", "lora"], rank: int | None, energy: float
) -> None:
    from sinelr_lightning.commands.export_adapter import export_adapter
    from sinelr_lightning.tasks.adapted import AdaptedTask

    if not isinstance(task, AdaptedTask):
        raise UserError(f"--format is for the adapter of a language model, a {type(task).__name__} has none")
    if rank is not None and rank < 1:
        raise UserError(f"rank must be at least 1, got {rank}")
    if not 0 <= energy <= 1:
        raise UserError(f"energy must be a share between 0 and 1, got {energy}")
    export_adapter(task, Path(out or format), format, rank, energy)


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


def _write(
    path: Path, content: bytes, compare: Callable[[Path], tuple[float, float]], remedy: str
) -> tuple[float, float]:
    """Write the file and compare it with the network before it comes to its place; what `compare` gave.

    Raises:
        UserError: it differs, or cannot be written.
    """
    from sinelr_lightning.files import atomic_path

    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
            difference, largest = compare(temporary)
            if not difference <= LARGEST_DIFFERENCE * largest:
                raise UserError(
                    f"{path} is not written: its output, up to {largest:.2g}, would differ from the network's by "
                    f"{difference:.1e}, more than {LARGEST_DIFFERENCE:g} of it{remedy}"
                )
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    return difference, largest
