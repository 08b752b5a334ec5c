"""From factors back to constants: for good (`fold`), or for the length of an evaluation (`cached_weights`)."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sinelr_lightning.layers.factorization import wide
from sinelr_lightning.layers.factorized import FactorizedConv, FactorizedLayer, FactorizedLinear
from sinelr_lightning.layers.packed import FactorizedAttention, unpack

__all__ = ["ThinLinear", "cached_weights", "fold"]


class ThinLinear(nn.Module):
    """Two thin `nn.Linear` in a row that still offer `weight` and `bias`, which some models read off a layer."""

    def __init__(self, first: nn.Linear, second: nn.Linear) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))

    @property
    def weight(self) -> Tensor:
        """The product of both weights, [m, n]."""
        return self.second.weight @ self.first.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias [m] of the second layer."""
        return self.second.bias


def fold(model: nn.Module, tolerance: float | None = None) -> nn.Module:
    """Change `model` in place and return it: factorized layers become ordinary ones with constant weights.

    The inverse of `convert`, for serving. A factorized linear layer becomes `nn.Linear`; with `tolerance` it becomes
    two thin `nn.Linear` in a row (`ThinLinear`), the truncated SVD of W, where these multiply less: r(m + n) < m·n
    for the smallest r with ‖W − W_r‖_F ≤ tolerance·‖W‖_F. A factorized convolution becomes its `nn.ConvNd`, and an
    attention's projection its one packed parameter, at any tolerance.

    Args:
        model: any module; if it is itself a factorized layer, take the returned one.
        tolerance: largest relative error of a weight in the Frobenius norm; None for the dense form.

    Raises:
        ValueError: tolerance ≤ 0.
    """
    if tolerance is not None and tolerance <= 0:
        raise ValueError(f"tolerance must be positive, got {tolerance}")
    if isinstance(model, FactorizedLayer):
        return _folded(model, tolerance)
    for module in list(model.modules()):
        if isinstance(module, FactorizedAttention):
            unpack(module)
    folded: dict[nn.Module, nn.Module] = {}  # a layer that stands in several places stays one layer
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, FactorizedLayer):
            if module not in folded:
                folded[module] = _folded(module, tolerance)
            model.set_submodule(name, folded[module])
    return model


@torch.no_grad()
def _folded(layer: FactorizedLayer, tolerance: float | None) -> nn.Module:
    weight = layer.weight
    if isinstance(layer, FactorizedConv):
        made: nn.Module = _empty_convolution(layer, weight)
    else:
        assert isinstance(layer, FactorizedLinear)
        factors = None if tolerance is None else _truncated(weight, tolerance)
        m, n = weight.shape
        bias = layer.bias is not None
        if factors is None:
            made = nn.utils.skip_init(nn.Linear, n, m, bias, device=weight.device, dtype=weight.dtype)
            made.weight.copy_(weight)
        else:
            left, right = factors
            r = left.shape[1]
            first = nn.utils.skip_init(nn.Linear, n, r, False, device=weight.device, dtype=weight.dtype)
            second = nn.utils.skip_init(nn.Linear, r, m, bias, device=weight.device, dtype=weight.dtype)
            first.weight.copy_(right)
            second.weight.copy_(left)
            made = ThinLinear(first, second)
    if layer.bias is not None and isinstance(made.bias, Tensor):
        made.bias.copy_(layer.bias)
    return made.train(layer.training).requires_grad_(any(p.requires_grad for p in layer.parameters()))


def _truncated(weight: Tensor, tolerance: float) -> tuple[Tensor, Tensor] | None:
    """Left [m, r] and right [r, n] factors within the tolerance, or None where they multiply no less than W."""
    u, s, vh = torch.linalg.svd(wide(weight), full_matrices=False)
    energy = s.square().flip(0).cumsum(0).flip(0)  # energy[r] is what truncation at r loses
    r = max(1, int((energy > tolerance**2 * energy[0]).sum()))
    m, n = weight.shape
    if r * (m + n) >= m * n:
        return None
    root = s[:r].sqrt()
    return u[:, :r] * root, root[:, None] * vh[:r]


def _empty_convolution(layer: FactorizedConv, weight: Tensor) -> nn.Module:
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[layer.dims]
    made = nn.utils.skip_init(
        kind,
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        1,
        layer.bias is not None,
        layer.padding_mode,
        device=weight.device,
        dtype=weight.dtype,
    )
    made.weight.copy_(weight.reshape(made.weight.shape))
    return made


@contextmanager
def cached_weights(model: nn.Module) -> Generator[None]:
    """Form each weight of `model` once, for all forward passes without gradients inside the block.

    Layers that run thin keep their thin factors instead, those that multiply by factors alone keep nothing. Inside
    the block the factors must not change; with gradients enabled the layers compute as always.
    """
    layers = [module for module in model.modules() if isinstance(module, FactorizedLayer)]
    before = [layer._served for layer in layers]  # in a block of another
    with torch.no_grad():
        for layer in layers:
            factors = layer.factors()
            served = layer.factorization.served(*factors)
            if not isinstance(layer, FactorizedLinear) and len(served) != 1:
                served = (layer.factorization.weight(*factors),)
            layer._served = tuple(matrix.to(layer.factor_dtype) for matrix in served) or None
    try:
        yield
    finally:
        for layer, served in zip(layers, before, strict=True):
            layer._served = served
