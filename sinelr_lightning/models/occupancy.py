"""Coordinate networks that say inside or outside at each point of a shape."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from sinelr_lightning.layers.factory import Dense, LinearFactory
from sinelr_lightning.models.activations import Gabor, Gaussian, Sine
from sinelr_lightning.models.encodings import frequency_encoding, frequency_encoding_size

__all__ = ["Activation", "GaborNetwork", "OccupancyNetwork", "occupancy_network"]

Activation = Literal["gaussian", "siren", "wire", "relu", "gelu"]


class OccupancyNetwork(nn.Module):
    """position → logit of being inside: 3 → width → … → width → 1 (Ji et al. 2025, §4.4).

    The first layer and the head are dense, the `depth` hidden layers come from the factory: 132,865 parameters dense
    at the default size, 2,817 with a factorization of rank 1.

    Args:
        linear: makes the hidden layers.
        depth: hidden layers width → width.
        width: features.
        activation: made anew for each layer by a call with its index, 0 for the first.
        frequencies: octaves of the encoding of the position; 0 takes the position as it is.
    """

    def __init__(
        self,
        linear: LinearFactory = Dense(),  # noqa: B008 (frozen)
        depth: int = 2,
        width: int = 256,
        activation: Callable[[int], nn.Module] = lambda layer: Gaussian(),
        frequencies: int = 0,
    ) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.first = nn.Linear(frequency_encoding_size(3, frequencies), width)
        self.hidden = nn.ModuleList(linear(width, width) for _ in range(depth))
        self.activations = nn.ModuleList(activation(layer) for layer in range(depth + 1))
        self.head = nn.Linear(width, 1)

    def forward(self, positions: Tensor) -> Tensor:
        """Logits [...] at positions [..., 3] of the cube [−1, 1]³."""
        positions = positions.to(self.first.weight.dtype)
        h = frequency_encoding(positions, self.frequencies) if self.frequencies else positions
        for layer, activation in zip([self.first, *self.hidden], self.activations, strict=True):
            h = activation(layer(h))
        return self.head(h)[..., 0]


class GaborNetwork(nn.Module):
    """WIRE, Saragadam et al. 2023: complex features between Gabor wavelets; the real part of the head is the logit.

    A complex weight A + jB is two real layers of the factory: z = x + jy goes to (A(x) − B(y)) + j(A(y) + B(x)). With
    their biases a and b, that of the complex layer is (a − b) + j(a + b).

    Args:
        linear: makes the hidden layers, two for each.
        depth: hidden layers width → width.
        width: complex features; real width/√2 has the parameters of a real network (ibid., §4).
        omega, scale: ω₀ and s₀ of the wavelets.
    """

    def __init__(
        self,
        linear: LinearFactory = Dense(),  # noqa: B008 (frozen)
        depth: int = 2,
        width: int = 181,
        omega: float = 10.0,
        scale: float = 10.0,
    ) -> None:
        super().__init__()
        self.first = nn.Linear(3, width)
        self.real = nn.ModuleList(linear(width, width) for _ in range(depth))
        self.imaginary = nn.ModuleList(linear(width, width) for _ in range(depth))
        self.gabor = Gabor(omega, scale)
        self.head = nn.Linear(2 * width, 1)

    def forward(self, positions: Tensor) -> Tensor:
        """Logits [...] at positions [..., 3] of the cube [−1, 1]³."""
        x = self.first(positions.to(self.first.weight.dtype))
        x, y = self.gabor(x, torch.zeros_like(x))
        for real, imaginary in zip(self.real, self.imaginary, strict=True):
            z = torch.stack([x, y])  # both parts in one product
            (ax, ay), (bx, by) = real(z), imaginary(z)
            x, y = self.gabor(ax - by, ay + bx)
        return self.head(torch.cat([x, y], dim=-1))[..., 0]


def occupancy_network(
    linear: LinearFactory,
    depth: int = 2,
    width: int = 256,
    activation: Activation = "gaussian",
    sigma: float = 0.1,
    omega: float | None = None,
    scale: float = 10.0,
    frequencies: int | None = None,
) -> OccupancyNetwork | GaborNetwork:
    """Make the network of one of five kinds.

    gaussian: exp(−x²/(2σ²)) (Ramasinghe & Lucey 2022). siren: sin(ω₀·x) after the first layer, with its weights
    uniform in ±1/3 (Sitzmann et al. 2020, §3.2); the hidden layers start at the variance 1/(3n) of `nn.Linear` where
    SIREN has 2/(nω₀²), so theirs is sin(√6·x): the same function at the start, for any factory. wire: `GaborNetwork`
    of width/√2. relu and gelu: over an encoding of the position.

    Args:
        linear: makes the hidden layers.
        depth: hidden layers width → width.
        width: features.
        activation: which kind.
        sigma: σ of gaussian.
        omega: ω₀; None for 30 in siren and 10 in wire.
        scale: s₀ of wire.
        frequencies: octaves of the encoding of the position, 0 for none; None for 6 with relu and gelu, none with the
            others. wire has none.
    """
    if activation == "wire":
        return GaborNetwork(linear, depth, round(width / math.sqrt(2)), omega or 10.0, scale)
    made: dict[str, Callable[[int], nn.Module]] = {
        "gaussian": lambda layer: Gaussian(sigma),
        "siren": lambda layer: Sine(math.sqrt(6) if layer else omega or 30.0),
        "relu": lambda layer: nn.ReLU(),
        "gelu": lambda layer: nn.GELU(),
    }
    if frequencies is None:
        frequencies = 6 if activation in ("relu", "gelu") else 0
    network = OccupancyNetwork(linear, depth, width, made[activation], frequencies)
    if activation == "siren":
        nn.init.uniform_(network.first.weight, -1 / network.first.in_features, 1 / network.first.in_features)
    return network
