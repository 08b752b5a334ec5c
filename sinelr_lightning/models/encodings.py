"""Encodings that lift coordinates into frequencies."""

import torch
from torch import Tensor

__all__ = ["frequency_encoding", "frequency_encoding_size"]


def frequency_encoding(x: Tensor, frequencies: int) -> Tensor:
    """γ(x) = (x, sin 2⁰x, …, sin 2^(L−1)x, cos 2⁰x, …, cos 2^(L−1)x), Mildenhall et al. 2020, eq. 4.

    As in the authors' code, x itself is kept and frequencies carry no factor π. For L = 1 and x = (0, π/2, 0) the
    result is (0, π/2, 0, 0, 1, 0, 1, 0, 1).

    Args:
        x: [..., d].
        frequencies: L; 10 for positions and 4 for directions in the paper.

    Returns:
        [..., d·(2L + 1)]: 63 numbers for a position with L = 10.
    """
    octaves = 2.0 ** torch.arange(frequencies, dtype=x.dtype, device=x.device)
    scaled = (x[..., None, :] * octaves[:, None]).flatten(-2)
    return torch.cat([x, scaled.sin(), scaled.cos()], dim=-1)


def frequency_encoding_size(dimensions: int, frequencies: int) -> int:
    """Length of the encoding of a `dimensions`-vector: 63 for 3 and 10, 27 for 3 and 4."""
    return dimensions * (2 * frequencies + 1)
