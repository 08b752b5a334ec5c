"""Parameter groups for an optimiser: each structure says how its parameters want to be treated."""

from typing import Any

from torch import nn

from sinelr_lightning.layers.factorization import FactorGroup

__all__ = ["parameter_groups"]


def parameter_groups(model: nn.Module, weight_decay: float = 0.0, lr: float | None = None) -> list[dict[str, Any]]:
    """Groups of the trainable parameters, each with `params`, `weight_decay`, `lr_multiplier` and `name`.

    Factors follow their factorization's `groups`, in layers and in adapters (`factor_groups`); vectors and scalars
    (biases, norms) do not decay. With `lr` each group has its own rate, `lr` times its `lr_multiplier`; optimisers of
    torch do not know the multiplier, so without `lr` the caller multiplies.

    Args:
        model: any module.
        weight_decay: of the groups that decay.
        lr: the learning rate of parameters whose multiplier is 1.
    """
    kinds: dict[int, FactorGroup] = {}
    for module in model.modules():
        told: Any = getattr(module, "factor_groups", dict)
        kinds |= {id(module.get_parameter(name)): kind for name, kind in told().items()}
    by_kind: dict[FactorGroup, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            kind = kinds.get(id(parameter)) or FactorGroup(decays=parameter.ndim > 1)
            by_kind.setdefault(kind, []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if kind.decays else 0.0,
            "lr_multiplier": kind.lr_multiplier,
            **({} if lr is None else {"lr": lr * kind.lr_multiplier}),
            "name": f"lr×{kind.lr_multiplier:g}" + ("" if kind.decays else ", no decay"),
        }
        for kind, parameters in by_kind.items()
    ]
