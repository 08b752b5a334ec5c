"""A network of rows of features."""

import torch
from torch import Tensor, nn

from sinelr_lightning.layers.factory import Dense, LinearFactory

__all__ = ["MLP"]


class MLP(nn.Module):
    """features → width → … → outputs, with GELU between; it standardises what goes in and out by itself.

    The first layer and the head are dense, the `depth` hidden layers come from the factory.

    Args:
        features, outputs: numbers of them.
        linear: makes the hidden layers.
        depth: hidden layers width → width.
        width: hidden features.
        dropout: probability, behind each hidden layer.
    """

    mean: Tensor
    scale: Tensor
    out_mean: Tensor
    out_scale: Tensor

    def __init__(
        self,
        features: int,
        outputs: int,
        linear: LinearFactory = Dense(),  # noqa: B008 (frozen)
        depth: int = 2,
        width: int = 256,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for name, count in (("", features), ("out_", outputs)):
            self.register_buffer(f"{name}mean", torch.zeros(count))
            self.register_buffer(f"{name}scale", torch.ones(count))
        self.first = nn.Linear(features, width)
        self.hidden = nn.ModuleList(linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, outputs)
        self.activation, self.dropout = nn.GELU(), nn.Dropout(dropout)

    @torch.no_grad()
    def standardise(self, x: Tensor, y: Tensor | None = None) -> None:
        """Take means and standard deviations from rows x [N, features] and, where given, targets y [N, outputs]."""
        for name, rows in (("", x), ("out_", y)):
            if rows is not None:
                mean, scale = rows.double().mean(0), rows.double().std(0, correction=0)
                constant = scale <= 1e-9 * mean.abs()  # says nothing
                getattr(self, f"{name}mean").copy_(mean)
                getattr(self, f"{name}scale").copy_(scale.masked_fill(constant, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [N, outputs] of rows [N, features], both in their own units."""
        h = self.activation(self.first((x - self.mean) / self.scale))
        for layer in self.hidden:
            h = self.dropout(self.activation(layer(h)))
        return self.head(h) * self.out_scale + self.out_mean
