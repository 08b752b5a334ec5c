import math

import pytest
import torch

from sinelr_lightning.models.activations import Gabor, Gaussian, Sine


def test_gaussian_at_zero_and_at_sigma():
    values = Gaussian(0.1)(torch.tensor([0.0, 0.1, -0.2], dtype=torch.float64))
    assert values.tolist() == pytest.approx([1, math.exp(-0.5), math.exp(-2)])


def test_sine():
    assert Sine(30.0)(torch.tensor(math.pi / 60)).item() == pytest.approx(1)


def test_gabor_is_the_complex_wavelet():
    z = torch.complex(*torch.randn(2, 50, dtype=torch.float64) * 0.3)
    expected = torch.exp(1j * 10 * z - (7 * z.abs()) ** 2)
    x, y = Gabor(10.0, 7.0)(z.real, z.imag)
    torch.testing.assert_close(torch.complex(x, y), expected)


def test_gabor_stays_below_its_bound():
    y = torch.linspace(-2, 2, 2001, dtype=torch.float64)
    x, _ = Gabor(10.0, 5.0)(torch.zeros_like(y), y)
    assert x.max().item() == pytest.approx(math.exp(10**2 / (4 * 5**2)), rel=1e-4)
