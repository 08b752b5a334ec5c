"""Run by itself in a process of its own: the logits of an exported folder, as somebody else would load it.

usage: read_back.py REQUEST ANSWER, two files of torch.save.
"""

import sys
from typing import Any

import torch
import transformers


def logits(request: dict[str, Any]) -> torch.Tensor:
    """Load what the request names and run its tokens through."""
    loader = getattr(transformers, request["model_class"])
    options = {"dtype": getattr(torch, request["dtype"]), **request["options"]}
    if request["format"] == "merged":
        model = loader.from_pretrained(request["folder"], **options)
    else:
        import peft

        if request["format"] == "adapter":
            import sinelr_lightning.adapters  # noqa: F401 (PEFT learns the adapter from it)
        else:
            sys.modules["sinelr_lightning"] = None  # ty: ignore[invalid-assignment] (a plain LoRA needs us no more)
        base = loader.from_pretrained(request["base"], **options, **request["file"])
        if request["pad_token_id"] is not None:
            base.config.pad_token_id = request["pad_token_id"]
        model = peft.PeftModel.from_pretrained(base, request["folder"])
    with torch.no_grad():
        return model.eval()(input_ids=request["tokens"]).logits.float()


if __name__ == "__main__":
    torch.save(logits(torch.load(sys.argv[1], weights_only=True)), sys.argv[2])
