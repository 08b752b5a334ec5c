"""How much smaller a model became."""

from dataclasses import dataclass

from torch import nn

from sinelr_lightning.layers.factorized import FactorizedLayer

__all__ = ["LayerSummary", "Summary", "summarize"]


@dataclass(frozen=True)
class LayerSummary:
    """One factorized layer: parameters of its weight as factors, and as a dense matrix; biases are not counted."""

    name: str
    shape: tuple[int, int]
    parameters: int
    dense_parameters: int


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

    def __str__(self) -> str:
        rows = [
            f"{layer.name:<40} {layer.shape[0]:>6} × {layer.shape[1]:<6} "
            f"{layer.parameters:>10,} of {layer.dense_parameters:>12,}"
            for layer in self.layers
        ]
        total = f"{self.parameters:,} of {self.dense_parameters:,} parameters, {self.compression:.2%} of dense"
        return "\n".join([*rows, total])


def summarize(model: nn.Module) -> Summary:
    """Count the parameters of `model` beside those that it would have with dense weights."""
    layers = []
    for name, module in model.named_modules():
        if isinstance(module, FactorizedLayer):
            factors = [f for f in module.factors() if f.is_floating_point()]
            m, n = module.weight_shape
            layers.append(LayerSummary(name, (m, n), sum(f.numel() for f in factors), m * n))
    parameters = sum(p.numel() for p in model.parameters())
    dense = parameters + sum(layer.dense_parameters - layer.parameters for layer in layers)
    return Summary(layers, parameters, dense)
