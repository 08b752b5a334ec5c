"""Approximating a given weight by the factors of a factorization."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sinelr_lightning.layers.factorization import Factorization

__all__ = ["descend"]


def descend(
    factorization: "Factorization", start: dict[str, Tensor], target: Tensor, steps: int
) -> dict[str, Tensor]:
    """Minimise ‖weight(factors) − target‖²_F by Adam from `start`; the best factors seen, so never worse than it.

    Each factor's step is a hundredth of its own root mean square, falling to zero on a cosine.
    """
    names = list(start)
    factors = [start[name].detach().clone().requires_grad_(start[name].is_floating_point()) for name in names]
    trainable = [f for f in factors if f.requires_grad]
    optimizer = torch.optim.Adam(
        [{"params": [f], "lr": 0.01 * f.detach().square().mean().sqrt().item() + 1e-12} for f in trainable]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    best, best_error = [f.detach().clone() for f in factors], float("inf")
    with torch.enable_grad():
        for step in range(steps + 1):
            error = (factorization.weight(*factors) - target).square().sum()
            if error.item() < best_error:
                best, best_error = [f.detach().clone() for f in factors], error.item()
            if step < steps:
                optimizer.zero_grad()
                error.backward()
                optimizer.step()
                schedule.step()
    return dict(zip(names, best, strict=True))
