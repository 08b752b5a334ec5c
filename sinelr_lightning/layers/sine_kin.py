"""What the factorizations share that put something else, or something more, in the place of the sine."""

from dataclasses import dataclass
from typing import Literal

from sinelr_lightning.layers.factorization import FactorGroup, Factorization
from sinelr_lightning.layers.sine_low_rank import SineLowRank

__all__ = ["SineKin"]


@dataclass(frozen=True)
class SineKin(Factorization):
    """A factorization with the hyperparameters of a `SineLowRank`, which starts as one does."""

    rank: int
    frequency: float | Literal["auto"] = "auto"
    gain: float | None = None
    phase_spread: float = 2.0
    lr_multiplier: float = 1.0

    def __post_init__(self) -> None:
        self.sine()

    def sine(self) -> SineLowRank:
        """The sine with these hyperparameters."""
        return SineLowRank(self.rank, self.frequency, self.gain, self.phase_spread, self.lr_multiplier)

    def groups(self) -> dict[str, FactorGroup]:
        """As those of the sine."""
        return self.sine().groups()
