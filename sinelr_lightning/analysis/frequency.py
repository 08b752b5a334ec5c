"""The rule for a sine's frequency and step size, and what the frequency does to its weight."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from sinelr_lightning.analysis.phases import PhaseStatistics, Sine, phase_spread, phase_statistics
from sinelr_lightning.analysis.spectrum import Spectrum, expected_stable_rank, spectrum
from sinelr_lightning.layers.sine_ops import phase_of

__all__ = ["USUAL_SPREAD", "USUAL_STEP", "AtFrequency", "measure", "phase_step", "recommended_frequency"]

USUAL_SPREAD = 2.0  # rad, where `frequency="auto"` starts
USUAL_STEP = 0.5  # rad that the phases move by in the first step of Adam


@dataclass(frozen=True)
class AtFrequency:
    """One sine at one frequency: its phases, its weight's spectrum, and the stable rank by theory."""

    omega: float
    phases: PhaseStatistics
    spectrum: Spectrum
    expected: float


def measure(sine: Sine, omegas: Sequence[float]) -> list[AtFrequency]:
    """Measure a sine at each frequency; one weight at a time is formed."""
    found = []
    for omega in omegas:
        values = spectrum(phase_of(sine.u.detach(), sine.v.detach(), omega).sin_())
        phases = phase_statistics(replace(sine, omega=omega), values.stable_rank)
        found.append(AtFrequency(omega, phases, values, expected_stable_rank(sine.u, sine.v, omega)))
    return found


def recommended_frequency(sine: Sine, spread: float = USUAL_SPREAD) -> float:
    """The ω at which the phases of these factors spread `spread` radians; inf for factors that are zero."""
    unit = phase_spread(sine.u, sine.v, 1.0)
    return spread / unit if unit else float("inf")


@torch.no_grad()
def phase_step(sine: Sine, lr: float) -> float:
    """Radians by which one step of Adam at this learning rate moves a phase, ω·lr·√k·(|u| + |v|).

    |·| is the root mean square. Every entry of the factors moves by about lr in the first steps, whatever its
    gradient.
    """
    u, v = (factor.double().square().mean().sqrt() for factor in (sine.u, sine.v))
    return float(sine.omega * lr * sine.u.shape[1] ** 0.5 * (u + v))
