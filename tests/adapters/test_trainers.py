"""Hugging Face's `Trainer` and TRL's `SFTTrainer` take a `SineLoraConfig` as they take a `LoraConfig`."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .tiny import llama, logits  # without PEFT it skips this file

# isort: split
from peft import PeftModel
from safetensors.torch import load_file

from . import trainers

MISSING = [name for name in ("trl", "datasets") if importlib.util.find_spec(name) is None]
needs_trl = pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} not installed: pip install trl")
every_trainer = pytest.mark.parametrize("which", ["transformers", pytest.param("trl", marks=needs_trl)])
with_and_without_dora = pytest.mark.parametrize("dora", [False, True], ids=["", "dora"])


@every_trainer
@with_and_without_dora
def test_train_be_killed_resume_reload(which: str, dora: bool, tmp_path):
    whole = trainers.trainer(which, tmp_path / "whole", dora)
    before = {name: value.clone() for name, value in whole.model.state_dict().items()}
    whole.train()
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, before[name]) is (".lora_" not in name), name

    command = [sys.executable, "-m", "adapters.trainers", which, str(tmp_path / "killed"), "dora" if dora else ""]
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    (left,) = (tmp_path / "killed").glob("checkpoint-*")
    assert left.name == f"checkpoint-{trainers.SAVED_EVERY}"
    written = (left / "adapter_model.safetensors").stat().st_mtime_ns

    resumed = trainers.trainer(which, tmp_path / "killed", dora)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == trainers.STEPS
    # One that began again would end at the same weights, and would write this checkpoint again.
    assert (left / "adapter_model.safetensors").stat().st_mtime_ns == written
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=1e-5, atol=1e-6)

    saved = tmp_path / "killed" / f"checkpoint-{trainers.STEPS}"
    assert not list(saved.glob("model*.safetensors")) and not list(saved.glob("pytorch_model*"))
    assert all(".lora_" in name for name in load_file(saved / "adapter_model.safetensors"))
    loaded = PeftModel.from_pretrained(llama(), saved).eval()
    torch.testing.assert_close(logits(loaded), logits(whole.model.eval()), rtol=1e-4, atol=1e-4)
    assert (logits(loaded) - logits(llama())).abs().max() > 1e-2
