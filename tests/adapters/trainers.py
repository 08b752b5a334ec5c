"""Other people's trainers on a tiny Llama, to be run here and in a process that dies: python -m adapters.trainers."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments

from sinelr_lightning.adapters import SineLoraConfig

from .tiny import ALL, VOCABULARY, llama

STEPS, SAVED_EVERY, DIES_AT = 9, 4, 7


class Dies(TrainerCallback):
    """Kills its own process in mid-epoch, as the kernel would."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == DIES_AT:
            os.kill(os.getpid(), signal.SIGKILL)


def config(dora: bool) -> SineLoraConfig:
    return SineLoraConfig(r=3, lora_alpha=6, target_modules=ALL, use_dora=dora, task_type="CAUSAL_LM")


def rows() -> list[dict[str, list[int]]]:
    """Sequences that count upwards, so that there is something to learn."""
    starts = torch.randint(VOCABULARY, (20,), generator=torch.Generator().manual_seed(3)).tolist()
    return [{"input_ids": [(start + i) % VOCABULARY for i in range(12)]} for start in starts]


def trainer(which: str, folder: str | Path, dora: bool, dies: bool = False) -> Any:
    """A trainer of STEPS steps over 20 rows whose checkpoints go into `folder`."""
    options: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "save_steps": SAVED_EVERY,
        "per_device_train_batch_size": 4,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "linear",
        "logging_steps": 1,
        "seed": 5,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
    }
    callbacks = [Dies()] if dies else []
    base = llama()
    torch.manual_seed(0)
    if which == "transformers":
        data = [{**row, "labels": row["input_ids"]} for row in rows()]
        model = get_peft_model(base, config(dora))
        return Trainer(model, TrainingArguments(**options), train_dataset=data, callbacks=callbacks)
    from datasets import Dataset  # ty: ignore[unresolved-import]
    from tokens import byte_level
    from trl import SFTConfig, SFTTrainer  # ty: ignore[unresolved-import]

    return SFTTrainer(
        base,
        SFTConfig(**options, bf16=False, gradient_checkpointing=False, dataset_kwargs={"skip_prepare_dataset": True}),
        train_dataset=Dataset.from_list(rows()),
        processing_class=byte_level(),
        peft_config=config(dora),
        callbacks=callbacks,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    trainer(sys.argv[1], sys.argv[2], sys.argv[3] == "dora", dies=True).train()
