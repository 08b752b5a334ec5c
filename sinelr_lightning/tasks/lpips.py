"""LPIPS (Zhang et al. 2018) where its weights are on this machine; evaluation never goes to the network for them."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["find_lpips"]

_WEIGHTS = "alexnet-owt-7be5be79.pth"  # torchvision's AlexNet, which LPIPS compares features of

log = logging.getLogger(__name__)


def find_lpips() -> Callable[[Tensor, Tensor], Tensor] | None:
    """Give the distance of two images [1, 3, H, W] in [0, 1], or None (and say so) where its weights are missing."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / _WEIGHTS
    if not path.is_file():
        log.info(
            "LPIPS skipped: its weights are not at %s (torchvision.models.alexnet(weights=...) fetches them)", path
        )
        return None
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    metric = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).eval()

    def distance(prediction: Tensor, target: Tensor) -> Tensor:
        metric.to(prediction.device)
        with torch.inference_mode():
            return metric(prediction, target)

    return distance
