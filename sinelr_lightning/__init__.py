"""sinelr: sine-activated low-rank weights, W = sin(ω·U·Vᵀ)/g (Ji et al., ICLR 2025), for PyTorch and Lightning."""

import importlib
from typing import Any

from sinelr_lightning.when_imported import when_imported

__version__ = "0.1.0"

# Where each public name lives. Importing the package loads none of them, so that the layers need torch alone.
_EXPORTS: dict[str, str] = {
    **dict.fromkeys(
        [
            "Dense",
            "FactorizedConv1d",
            "FactorizedConv2d",
            "FactorizedConv3d",
            "FactorizedLinear",
            "LinearFactory",
            "LowRank",
            "SineLowRank",
            "cached_weights",
            "convert",
            "fold",
            "parameter_groups",
            "summarize",
        ],
        "sinelr_lightning.layers",
    ),
    **dict.fromkeys(["CachedWeights", "ConvertCallback"], "sinelr_lightning.callbacks"),
    **dict.fromkeys(["FactorizedLoraConfig", "SineLoraConfig"], "sinelr_lightning.adapters"),
    "progress_bar": "sinelr_lightning.progress",
}

__all__ = ["__version__", *_EXPORTS]

when_imported("peft", "sinelr_lightning.adapters")  # PEFT then knows our adapters when it loads one


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
