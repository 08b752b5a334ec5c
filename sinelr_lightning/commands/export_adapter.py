"""Language models with adapters as folders that others load: an adapter of PEFT, a merged model, a plain LoRA."""

import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sinelr_lightning.adapters import FactorizedLoraConfig
from sinelr_lightning.adapters.model import probe_tokens
from sinelr_lightning.commands import read_back
from sinelr_lightning.errors import UserError
from sinelr_lightning.files import user_folder
from sinelr_lightning.tasks.adapted import AdaptedTask
from sinelr_lightning.tasks.pretrained import place_of

__all__ = ["AdapterFormat", "export_adapter"]

AdapterFormat = Literal["adapter", "merged", "lora"]
LARGEST_DIFFERENCE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}  # of logits, over the largest


def export_adapter(task: AdaptedTask, out: Path, form: AdapterFormat, rank: int | None, energy: float) -> None:
    """Write the folder, load it in a clean process, compare its logits, and only then put it in its place.

    Args:
        task: on the CPU, in evaluation mode.
        out: the folder; an earlier export is replaced.
        form: `adapter` of PEFT, `merged` model, or plain `lora`.
        rank: of the plain LoRA; None for four times the adapter's, or the adapter as it stands if it is a plain LoRA.
        energy: smallest share of the updates' energy that a plain LoRA must keep.

    Raises:
        UserError: the folder cannot be written, keeps too little, or differs; or the adapter changes nothing.
    """
    _check_apart(out, task.base_name)
    tokens = probe_tokens(task.network.config.get_text_config().vocab_size)
    with torch.no_grad():
        trained = task.network(input_ids=tokens).logits.float()
        with task.network.disable_adapter():
            base = task.network(input_ids=tokens).logits.float()
    size = float(trained.abs().max())
    if not math.isfinite(size):
        raise UserError("the logits are no numbers: the adapter's weights hold NaN or infinity")
    if float((trained - base).abs().max()) == 0:
        raise UserError("the adapter changes nothing: the logits are those of the base model; train it first")
    kept = None
    with user_folder(out) as folder:
        if form == "lora" and not _is_plain(task, rank):
            kept = _write_plain(task, folder, rank or 4 * getattr(task.adapter, "rank", 2), energy)
        elif form == "merged":
            task.network.merge_and_unload(safe_merge=True).save_pretrained(folder)
            task.tokenizer.save_pretrained(folder)
        else:
            task.network.save_pretrained(folder)
        read = _read_back(task, folder, out, form, tokens)
        difference = float((read - trained).abs().max())
        if float((read - base).abs().max()) == 0:
            raise UserError(
                f"{out} is not written: read back, it answers as the base model does, without the adapter"
            )
        if kept is None and not difference <= LARGEST_DIFFERENCE[task.dtype_name] * size:
            raise UserError(f"{out} is not written: its logits, up to {size:.2g}, would differ by {difference:.1e}")
    changed = float((read - base).abs().max())
    megabytes = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    share = "" if kept is None else f"{kept:.2%} of the update's energy kept, "
    sys.stderr.write(
        f"{out}: {form}, {megabytes:,.1f} MB, {share}read back in a process of its own: logits, up to {size:.2g}, "
        f"differ from the trained ones by at most {difference:.1e}, from the base model's by {changed:.1e}\n"
    )


def _check_apart(out: Path, base: str) -> None:
    """Leave the base alone: a merged model that an adapter is trained on is an earlier export, too."""
    place, file = place_of(base)
    there, ours = Path(place, *file.values()).resolve(), out.resolve()
    if there.exists() and (ours.is_relative_to(there) or there.is_relative_to(ours)):
        raise UserError(f"{out} is the base model {base}, holds it or lies in it: name another folder")


def _is_plain(task: AdaptedTask, rank: int | None) -> bool:
    """Whether the adapter as it stands is the plain LoRA that is asked for.

    Raises:
        UserError: it is one of PEFT's own, but not that one.
    """
    config = task.network.peft_config["default"]
    if isinstance(config, FactorizedLoraConfig):
        return False
    if config.use_dora:
        raise UserError("a LowRank adapter with dora is PEFT's own DoRA and no plain LoRA: take --format adapter")
    if rank not in (None, config.r):
        raise UserError(f"a LowRank adapter is a plain LoRA of rank {config.r} as it stands: leave --rank {rank} out")
    return True


def _write_plain(task: AdaptedTask, folder: Path, rank: int, energy: float) -> float:
    from safetensors.torch import save_file

    from sinelr_lightning.adapters.plain import as_plain_lora

    plain = as_plain_lora(task.network, rank)
    if plain.energy < energy:
        raise UserError(
            f"a plain LoRA of rank {rank} keeps {plain.energy:.2%} of the update's energy, less than --energy "
            f"{energy:g}: take a larger --rank, or --format merged, which keeps all"
        )
    plain.config.save_pretrained(str(folder))
    save_file(plain.state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return plain.energy


def _read_back(task: AdaptedTask, folder: Path, out: Path, form: str, tokens: Tensor) -> Tensor:
    """The logits that another process gets from the folder, which messages call `out`."""
    place, file = place_of(task.base_name)
    request: dict[str, Any] = {
        "format": form,
        "folder": str(folder),
        "base": place,
        "file": file,
        "model_class": task.model_class,
        "options": task.model_options(),
        "dtype": task.dtype_name,
        "pad_token_id": task.network.config.pad_token_id,
        "tokens": tokens,
    }
    with tempfile.TemporaryDirectory() as scratch:
        question, answer = Path(scratch, "question.pt"), Path(scratch, "answer.pt")
        torch.save(request, question)
        # -P: what lies beside the script is not importable there.
        command = [sys.executable, "-P", read_back.__file__, str(question), str(answer)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no reason given")
            reason = last.strip().replace(str(folder), str(out))
            raise UserError(f"{out} is not written: it cannot be loaded in a process of its own: {reason}")
        return torch.load(answer, weights_only=True)
