"""Several samples in one row of a language model: how each is kept from reading the others."""

from typing import Any

import torch
from torch import Tensor

from sinelr_lightning.errors import UserError, first_line
from sinelr_lightning.layers.evaluation import evaluating

__all__ = ["needs_mask", "segment_mask"]

LENGTH = 8  # tokens of a sample on which models are tried


def segment_mask(segments: Tensor, model: Any) -> Tensor:
    """Who sees whom [B, 1, T, T], as the model's attention takes it: tokens of the same segment that stand before.

    Args:
        segments: number of each token's sample [B, T].
        model: of transformers.
    """
    seen = (segments[:, None, :, None] == segments[:, None, None, :]).tril()  # padding sees padding: no row is empty
    if getattr(model.config, "_attn_implementation", "sdpa") == "sdpa":
        return seen
    return torch.zeros(seen.shape, dtype=model.dtype, device=seen.device).masked_fill(
        ~seen, torch.finfo(model.dtype).min
    )


@torch.no_grad()
def needs_mask(model: Any, name: str) -> bool:
    """Whether a packed row needs `segment_mask`; without it positions that begin anew tell the samples apart.

    Found out with two samples in a row: the second must get the logits that it gets alone. Without a mask of ours
    transformers makes one itself that also knows of sliding windows; older models of it do not.

    Args:
        model: of transformers.
        name: what a message calls it.

    Raises:
        UserError: neither keeps them apart: layers with a state or a convolution along the row.
    """
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.randint(vocabulary, (1, 2 * LENGTH), generator=torch.Generator().manual_seed(0)).to(model.device)
    along = torch.arange(2 * LENGTH, device=model.device)[None]

    def second(ids: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        with evaluating(model):
            output = model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False)
        return output.logits[0, -LENGTH:].float()

    try:
        alone = second(tokens[:, LENGTH:], along[:, :LENGTH], None)
        joined = second(tokens, along, None)
        mixed = float((joined - alone).abs().max())
        rounding = min(4 * torch.finfo(model.dtype).eps * float(alone.abs().max()), mixed / 4)
        mask = segment_mask(along // LENGTH, model)
        sliding = getattr(model.config.get_text_config(), "sliding_window", None)  # which no mask of ours has
        for way in (None,) if sliding else (None, mask):
            try:
                apart = second(tokens, along % LENGTH, way)
            except (ValueError, RuntimeError, TypeError, IndexError):  # a mask of another form than it takes
                continue
            if float((apart - alone).abs().max()) <= max(rounding, 0.01 * mixed):
                return way is not None
    except (ValueError, RuntimeError, TypeError, IndexError) as error:
        raise UserError(f"{name} cannot read packed samples ({first_line(error)}); set data.packing false") from error
    raise UserError(f"{name} would mix the samples of a packed row; set data.packing false")
