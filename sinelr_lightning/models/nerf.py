"""The radiance field of Mildenhall et al. 2020, and the small density field that proposes its samples."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sinelr_lightning.layers.factory import Dense, LinearFactory
from sinelr_lightning.models.encodings import frequency_encoding, frequency_encoding_size

__all__ = ["DensityField", "NeRF"]


def _density(raw: Tensor) -> Tensor:
    """Softplus shifted by −1 (Barron et al. 2021): positive, and never the dead zero of a ReLU."""
    return F.softplus(raw - 1)


class NeRF(nn.Module):
    """(position, view direction) → (density, colour): Mildenhall et al. 2020, figure 7.

    `depth` layers of `width` with ReLU; the encoded position enters again after each layer in `skips`; density from
    the trunk alone, colour from a feature vector and the encoded direction through one layer of half the width.
    Every layer but the two output heads comes from the factory: 595,844 parameters dense at the default size, 7,965
    with a factorization of rank 1 (k·(m + n) for each of the ten weights, plus biases and heads).

    Args:
        linear: makes the hidden layers.
        depth: layers of the trunk.
        width: features of the trunk.
        skips: indices of the layers after which the encoded position is appended.
        position_frequencies, direction_frequencies: octaves of the two encodings.
    """

    def __init__(
        self,
        linear: LinearFactory = Dense(),  # noqa: B008 (frozen)
        depth: int = 8,
        width: int = 256,
        skips: tuple[int, ...] = (4,),
        position_frequencies: int = 10,
        direction_frequencies: int = 4,
    ) -> None:
        super().__init__()
        self.skips = frozenset(skips)
        self.position_frequencies, self.direction_frequencies = position_frequencies, direction_frequencies
        encoded = frequency_encoding_size(3, position_frequencies)
        inputs = [encoded] + [width + encoded if i in self.skips else width for i in range(depth - 1)]
        self.trunk = nn.ModuleList(linear(size, width) for size in inputs)
        self.density = nn.Linear(width, 1)
        self.feature = linear(width, width)
        self.view = linear(width + frequency_encoding_size(3, direction_frequencies), width // 2)
        self.colour = nn.Linear(width // 2, 3)

    def forward(self, positions: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Density and colour at points seen from directions.

        Args:
            positions: [..., 3].
            directions: unit vectors, broadcastable to the positions ([..., 1, 3] for one a ray).

        Returns:
            density [...] ≥ 0 per unit length, colour [..., 3] in (0, 1).
        """
        encoded = frequency_encoding(positions, self.position_frequencies)
        h = encoded
        for i, layer in enumerate(self.trunk):
            h = F.relu(layer(h), inplace=True)
            if i in self.skips:
                h = torch.cat([encoded, h], dim=-1)
        density = _density(self.density(h)[..., 0])
        view = frequency_encoding(directions, self.direction_frequencies).expand(*h.shape[:-1], -1)
        h = F.relu(self.view(torch.cat([self.feature(h), view], dim=-1)), inplace=True)
        return density, torch.sigmoid(self.colour(h))


class DensityField(nn.Module):
    """position → density, small: it only says where the radiance field should look (Barron et al. 2022, §3).

    Args:
        linear: makes the hidden layers.
        depth, width: size of the network.
        frequencies: octaves of the position's encoding.
    """

    def __init__(
        self,
        linear: LinearFactory = Dense(),  # noqa: B008 (frozen)
        depth: int = 2,
        width: int = 64,
        frequencies: int = 6,
    ) -> None:
        super().__init__()
        self.frequencies = frequencies
        sizes = [frequency_encoding_size(3, frequencies)] + [width] * (depth - 1)
        self.trunk = nn.ModuleList(linear(size, width) for size in sizes)
        self.density = nn.Linear(width, 1)

    def forward(self, positions: Tensor) -> Tensor:
        """Density [...] ≥ 0 at positions [..., 3]."""
        h = frequency_encoding(positions, self.frequencies)
        for layer in self.trunk:
            h = F.relu(layer(h), inplace=True)
        return _density(self.density(h)[..., 0])
