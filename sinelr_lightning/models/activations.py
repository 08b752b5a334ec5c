"""Activations of coordinate networks."""

import torch
from torch import Tensor, nn

__all__ = ["Gabor", "Gaussian", "Sine"]


class Gaussian(nn.Module):
    """exp(−x²/(2σ²)), Ramasinghe & Lucey 2022, table 1: 1 at 0, exp(−½) at σ.

    Args:
        sigma: σ; 0.1 in the occupancy networks of Ji et al. 2025, §4.4.
    """

    def __init__(self, sigma: float = 0.1) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        """Apply to x [...]."""
        return torch.exp(x.square() * (-0.5 / self.sigma**2))

    def extra_repr(self) -> str:
        """`sigma=0.1`."""
        return f"sigma={self.sigma}"


class Sine(nn.Module):
    """sin(ω₀·x), Sitzmann et al. 2020, eq. 5: of the activations, not of a weight matrix.

    Args:
        omega: ω₀.
    """

    def __init__(self, omega: float = 30.0) -> None:
        super().__init__()
        self.omega = omega

    def forward(self, x: Tensor) -> Tensor:
        """Apply to x [...]."""
        return torch.sin(self.omega * x)

    def extra_repr(self) -> str:
        """`omega=30.0`."""
        return f"omega={self.omega}"


class Gabor(nn.Module):
    """exp(j·ω₀·z − |s₀·z|²) of a complex z = x + j·y, Saragadam et al. 2023 (WIRE), eq. 5.

    Written out, exp(−ω₀·y − s₀²·(x² + y²))·(cos ω₀x, sin ω₀x). The exponent −ω₀y − s₀²y² is at most (ω₀/2s₀)², so
    no value passes exp(ω₀²/4s₀²).

    Args:
        omega: ω₀.
        scale: s₀.
    """

    def __init__(self, omega: float = 10.0, scale: float = 10.0) -> None:
        super().__init__()
        self.omega, self.scale = omega, scale

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Apply to real and imaginary part [...]; give both parts of the result."""
        envelope = torch.exp(-self.omega * y - self.scale**2 * (x.square() + y.square()))
        return envelope * torch.cos(self.omega * x), envelope * torch.sin(self.omega * x)

    def extra_repr(self) -> str:
        """`omega=10.0, scale=10.0`."""
        return f"omega={self.omega}, scale={self.scale}"
