"""What a sine's phases and spectrum say of its frequency and its rank; needs torch alone."""

from sinelr_lightning.analysis.phases import PhaseStatistics, phase_spread, phase_statistics, sines

__all__ = ["PhaseStatistics", "phase_spread", "phase_statistics", "sines"]
