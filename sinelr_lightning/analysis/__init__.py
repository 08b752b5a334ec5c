"""What a sine's phases and spectrum say of its frequency and its rank; needs torch alone."""

from sinelr_lightning.analysis.phases import PhaseStatistics, Sine, phase_spread, phase_statistics, sines
from sinelr_lightning.analysis.spectrum import Spectrum, expected_stable_rank, spectrum, stable_rank

__all__ = [
    "PhaseStatistics",
    "Sine",
    "Spectrum",
    "expected_stable_rank",
    "phase_spread",
    "phase_statistics",
    "sines",
    "spectrum",
    "stable_rank",
]
