"""How much smaller and cheaper a model became."""

import re
from dataclasses import dataclass

from torch import nn

from sinelr_lightning.layers.factorized import FactorizedLayer

__all__ = ["GroupSummary", "LayerSummary", "Summary", "summarize"]


@dataclass(frozen=True)
class LayerSummary:
    """One factorized layer: what its weight [m, n] takes as factors, and as a dense matrix.

    Parameters are those of the weight; biases are not counted. Multiply-adds are for one row of the input, or one
    pixel of a convolution's output, forward. Forming the weight, or the thin factors in its place, is spent once a
    step whatever the batch is, and not counted.
    """

    name: str
    shape: tuple[int, int]
    parameters: int
    dense_parameters: int
    multiply_adds: int

    @property
    def dense_multiply_adds(self) -> int:
        """m·n."""
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class GroupSummary:
    """Layers of one shape whose names differ in the numbers of their blocks alone; sums over the layers."""

    name: str
    count: int
    shape: tuple[int, int]
    parameters: int
    dense_parameters: int
    multiply_adds: int
    dense_multiply_adds: int

    def __str__(self) -> str:
        shape = f"{self.shape[0]}×{self.shape[1]}"
        name = self.name if len(self.name) <= 46 else f"…{self.name[-45:]}"
        pairs = (self.parameters, self.dense_parameters), (self.multiply_adds, self.dense_multiply_adds)
        columns = "".join(f"  {_short(ours):>7} of {_short(dense):<7}" for ours, dense in pairs)
        return f"{name:<46} {self.count:>3} {shape:>11}{columns}"


@dataclass(frozen=True)
class Summary:
    """Parameters of a model, and those of the same model with dense weights."""

    layers: list[LayerSummary]
    parameters: int
    dense_parameters: int

    @property
    def compression(self) -> float:
        """Parameters over those of the dense model: 0.0134 for the NeRF of the paper at rank 1."""
        return self.parameters / self.dense_parameters if self.dense_parameters else 1.0

    @property
    def groups(self) -> list[GroupSummary]:
        """The layers by name and shape, with `*` for the numbers of blocks: `encoder.layers.*.mlp.0`.

        The last part of a name, a layer's own, keeps its number. A layer alone in its group keeps its whole name.
        """
        groups: dict[tuple[str, tuple[int, int]], list[LayerSummary]] = {}
        for layer in self.layers:
            block, dot, own = layer.name.rpartition(".")
            groups.setdefault((re.sub(r"\d+", "*", block) + dot + own, layer.shape), []).append(layer)
        return [
            GroupSummary(
                name if len(layers) > 1 else layers[0].name,
                len(layers),
                shape,
                sum(layer.parameters for layer in layers),
                sum(layer.dense_parameters for layer in layers),
                sum(layer.multiply_adds for layer in layers),
                sum(layer.dense_multiply_adds for layer in layers),
            )
            for (name, shape), layers in groups.items()
        ]

    def __str__(self) -> str:
        total = f"{self.parameters:,} of {self.dense_parameters:,} parameters, {self.compression:.2%} of dense"
        if not self.layers:
            return total
        head = f"{'factorized layers':<46} {'':>3} {'m×n':>11}  {'parameters':^18}  {'multiply-adds/row':^18}"
        return "\n".join([head.rstrip(), *(str(group).rstrip() for group in self.groups), total])


def _short(number: int) -> str:
    """Exact below ten thousand, else three digits: 9,408, 98.3k, 28.3M."""
    if number < 10_000:
        return f"{number:,}"
    size, unit = next((size, unit) for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if number >= 0.9995 * size)
    return f"{number / size:.3g}{unit}"


def summarize(model: nn.Module) -> Summary:
    """Count parameters and multiply-adds of `model` beside those that it would have with dense weights."""
    layers = []
    for name, module in model.named_modules():
        if isinstance(module, FactorizedLayer):
            factors = [f for f in module.factors() if f.is_floating_point()]
            m, n = module.weight_shape
            parameters = sum(f.numel() for f in factors)
            layers.append(LayerSummary(name, (m, n), parameters, m * n, module.multiply_adds()))
    parameters = sum(p.numel() for p in model.parameters())
    dense = parameters + sum(layer.dense_parameters - layer.parameters for layer in layers)
    return Summary(layers, parameters, dense)
