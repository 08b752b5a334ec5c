"""`nn.MultiheadAttention` with its packed input projection as three factorizations."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from sinelr_lightning.layers.factorization import Factorization, without_autocast
from sinelr_lightning.layers.factorized import FactorizedLayer

__all__ = ["PARTS", "FactorizedAttention", "FactorizedMatrix", "pack", "unpack"]

# One factorization each and not one of the stacked [3E, E]: stacked, q, k and v would share V, hence one space of
# inputs of dimension k at low rank, and with a sine one gain and one spread of phases, while a value projection has a
# far flatter spectrum than the two that are multiplied together. Three of E×E have 6kE parameters, stacked 4kE.
PARTS = ("q", "k", "v")


class FactorizedMatrix(FactorizedLayer):
    """A factorized [m, n] matrix that another module multiplies with: no bias and no forward of its own."""

    def __init__(self, factorization: Factorization, m: int, n: int) -> None:
        super().__init__(factorization, m, n, bias=False)

    def matrix(self) -> Tensor:
        """The weight, formed wide also under autocast, or that of `cached_weights`."""
        served = self.served
        if served is not None:
            return served[0]
        with without_autocast(self.factors()[0]):
            return self.weight

    def extra_repr(self) -> str:
        return f"{self.weight_shape[0]} × {self.weight_shape[1]}, {self.factorization}"


class FactorizedAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` with its `in_proj_weight` [3E, E] formed from `in_proj.q`, `in_proj.k` and `in_proj.v`.

    Made by `convert` from an attention that exists, and unmade by `fold`. Being formed, the weight is right for
    whoever reads it: attention's own forward, its fused path in evaluation, and `nn.TransformerEncoderLayer`'s. It is
    formed once a forward pass and kept until backward, which is as much memory as the dense weight has. Copies,
    pickles and `state_dict` (`in_proj.q.U`, …) work as for any module; assigning to `in_proj_weight` does not.
    """

    in_proj: nn.ModuleDict
    _formed: Tensor | None

    @property
    def in_proj_weight(self) -> Tensor:
        """The projections of query, key and value one above the other, [3E, E]; gradients flow to the factors."""
        if self._formed is not None:
            return self._formed
        return torch.cat([cast(FactorizedMatrix, self.in_proj[part]).matrix() for part in PARTS])

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention`."""
        self._formed = self.in_proj_weight  # which forward reads several times
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._formed = None


def pack(attention: nn.MultiheadAttention, parts: Mapping[str, FactorizedMatrix]) -> None:
    """Change `attention` in place into a `FactorizedAttention` with the given q, k and v, each [E, E]."""
    # A change of class, as `torch.nn.utils.parametrize` makes too, keeps hooks, mode and every reference to the
    # module; unlike parametrize's, the class is one that pickle finds.
    del attention._parameters["in_proj_weight"]
    attention.__class__ = FactorizedAttention
    attention._formed = None  # ty: ignore[invalid-assignment]
    attention.in_proj = nn.ModuleDict({part: parts[part] for part in PARTS})


def unpack(attention: FactorizedAttention) -> None:
    """Change `attention` in place into an `nn.MultiheadAttention` with a constant weight: the inverse of `pack`."""
    trained = any(p.requires_grad for p in attention.in_proj.parameters())
    weight = nn.Parameter(attention.in_proj_weight.detach().clone(), requires_grad=trained)
    del attention.in_proj, attention._formed
    attention.__class__ = nn.MultiheadAttention
    attention.register_parameter("in_proj_weight", weight)
