"""Sine low-rank layers and the seam that they come from; needs torch alone."""

from sinelr_lightning.layers.activated import ActivatedLowRank
from sinelr_lightning.layers.block_tensor_train import BlockTensorTrain
from sinelr_lightning.layers.convert import Conversion, convert
from sinelr_lightning.layers.factorization import FactorGroup, Factorization
from sinelr_lightning.layers.factorized import (
    FactorizedConv1d,
    FactorizedConv2d,
    FactorizedConv3d,
    FactorizedLayer,
    FactorizedLinear,
)
from sinelr_lightning.layers.factory import Dense, LinearFactory
from sinelr_lightning.layers.fit import Fit
from sinelr_lightning.layers.fold import cached_weights, fold
from sinelr_lightning.layers.fourier import FourierLowRank, ResidualSine
from sinelr_lightning.layers.groups import parameter_groups
from sinelr_lightning.layers.hadamard import FedPara
from sinelr_lightning.layers.kronecker import Kronecker
from sinelr_lightning.layers.low_rank import LowRank
from sinelr_lightning.layers.packed import FactorizedAttention
from sinelr_lightning.layers.sine_low_rank import SineLowRank
from sinelr_lightning.layers.sparse import SparseLowRank, SparseSine
from sinelr_lightning.layers.summary import GroupSummary, LayerSummary, Summary, summarize

__all__ = [
    "ActivatedLowRank",
    "BlockTensorTrain",
    "FedPara",
    "FourierLowRank",
    "Kronecker",
    "ResidualSine",
    "SparseLowRank",
    "SparseSine",
    "Conversion",
    "Dense",
    "FactorGroup",
    "Factorization",
    "FactorizedAttention",
    "FactorizedConv1d",
    "FactorizedConv2d",
    "FactorizedConv3d",
    "FactorizedLayer",
    "FactorizedLinear",
    "Fit",
    "GroupSummary",
    "LayerSummary",
    "LinearFactory",
    "LowRank",
    "SineLowRank",
    "Summary",
    "cached_weights",
    "convert",
    "fold",
    "parameter_groups",
    "summarize",
]
