"""What a user asks PEFT for: a `LoraConfig` whose update is a factorization of ours."""

import copy
import inspect
from dataclasses import InitVar, dataclass, field
from difflib import get_close_matches
from typing import Any

import torch
from peft import LoraConfig

from sinelr_lightning.layers import Factorization
from sinelr_lightning.layers.factory import families

__all__ = ["FactorizedLoraConfig", "SineLoraConfig", "as_lora"]

# Fields of `LoraConfig` that change what an adapter computes or the base weight it stands on, with the value that
# leaves both alone.
UNSUPPORTED: dict[str, Any] = {
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "kasa_config": None,
    "megatron_config": None,
    "monteclora_config": None,
    "target_parameters": None,
    "use_bdlora": None,
    "velora_config": None,
}


@dataclass
class FactorizedLoraConfig(LoraConfig):
    """W₀ + s·W(factors): an adapter whose update is any `Factorization` of this package, by PEFT.

    `r` is the rank of the factorization; s = lora_alpha/r, or lora_alpha/√r with `use_rslora`. Everything else is
    `LoraConfig`'s. In memory the adapter counts as LoRA: mixed batches, hotswap and plain neighbours work. On disk
    its type is one that PEFT alone does not know: a process without this package stops instead of answering wrong.

    Args:
        factorization: name of the family, such as `LowRank`.
        factorization_args: its other hyperparameters.
        hadamard: whether the update is multiplied with the frozen weight entry by entry, W₀ + s·W₀ ∘ W(factors)
            (HiRA, Huang et al., ICLR 2025, equation 5). An entry of W₀ then changes by up to s/g of itself under a
            sine, which wants a gain of 1 and a frequency of 6 there. Linear layers alone, without `use_dora`.

    Raises:
        ValueError: no such family, hyperparameters that it refuses, r < 1, an `init_lora_weights` other than True,
            False and "gaussian", `hadamard` with `use_dora`, or a part of `LoraConfig` that only fits a plain
            low-rank update.
    """

    factorization: str | None = field(
        default=None,
        # The tag has layers that do not know us refuse the adapter.
        metadata={"help": "Family of the update.", "is_lora_variant": True},
    )
    factorization_args: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Hyperparameters of the family other than its rank."}
    )
    hadamard: bool = field(
        default=False, metadata={"help": "Multiply the update with the frozen weight, entry by entry (HiRA)."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.factorization_args, dict):
            raise ValueError(f"factorization_args must be a dictionary, got {self.factorization_args!r}")
        if self.init_lora_weights not in (True, False, "gaussian"):
            raise ValueError(
                f'init_lora_weights={self.init_lora_weights!r} fits a plain B·A alone; take True, False or "gaussian"'
            )
        if self.hadamard and self.use_dora:
            raise ValueError("hadamard cannot be combined with use_dora: take one of them")
        for name, neutral in UNSUPPORTED.items():
            if getattr(self, name, neutral) not in (neutral, []):
                raise ValueError(f"{name} cannot be combined with {type(self).__name__}: it changes what B·A means")
        for name, rank in {"r": self.r, **(self.rank_pattern or {})}.items():
            if not isinstance(rank, int) or isinstance(rank, bool):
                raise ValueError(f"a rank must be a whole number from 1 on, got {rank!r} for {name}")
            family = self.family(rank)
            for start in ("balanced", "spectral"):
                if getattr(family, start, False):
                    raise ValueError(f"{start} is how a layer starts from scratch; an adapter starts at zero")
            with torch.device("meta"):  # some can start at zero only where nothing would ever leave it
                family.factors(*_example_size(family), zero=self.init_lora_weights is not False)

    def family(self, rank: int) -> Factorization:
        """The factorization of a layer whose adapter has this rank."""
        known = families(Factorization)
        family = known.get(self.factorization or "")
        if family is None:
            near = get_close_matches(str(self.factorization), known) or sorted(known)
            raise ValueError(f"factorization {self.factorization!r} is none of ours: take {' or '.join(near)}")
        given = self._arguments()
        ranked = {"rank": rank} if "rank" in inspect.signature(family).parameters else {}
        try:
            return family(**ranked, **given)
        except TypeError as error:
            accepted = ", ".join(name for name in inspect.signature(family).parameters if name != "rank") or "none"
            raise ValueError(f"factorization_args {given}: {self.factorization} takes {accepted}") from error

    def _arguments(self) -> dict[str, Any]:
        return self.factorization_args

    def to_dict(self) -> dict[str, Any]:
        """As `LoraConfig`, under the type that only this package can load, and with lora_alpha as alpha.

        Servers of LoRA that do not look at the type (vLLM, llama.cpp's converter) ask for lora_alpha: they stop
        instead of serving B·A.
        """
        fields = super().to_dict()
        fields["alpha"] = fields.pop("lora_alpha")
        return {**fields, "peft_type": type(self).__name__.removesuffix("Config").upper()}


@dataclass
class SineLoraConfig(FactorizedLoraConfig):
    """W₀ + s·sin(ω·B·A)/g: sine LoRA, and sine DoRA with `use_dora=True` (arXiv 2403.19243, section 4.4).

    Give it to `peft.get_peft_model`, Hugging Face's `Trainer` or TRL as you would a `LoraConfig`. An adapter starts
    at B = 0 and so at the base model; near there it is LoRA with lora_alpha multiplied by ω/g. Each entry of the
    update stays within s/g.

    Args:
        frequency: ω > 0, or "auto" for 6·√n, where a layer has n inputs (an embedding: n features).
        gain: g > 0, which divides; None for √n.
        use_sinelora, sinelora_frequency, sinelora_scaling: names of the proposal to PEFT, as in files written so.
        freq, s: names of ω and g in the authors' code, as in files written by it.

    Raises:
        ValueError: ω or g ≤ 0, two values for one of them, or what `FactorizedLoraConfig` refuses.
    """

    factorization: str | None = field(
        default="SineLowRank", metadata={"help": "Family of the update.", "is_lora_variant": True}
    )
    frequency: float | str = field(default="auto", metadata={"help": 'Frequency ω, or "auto".'})
    gain: float | None = field(default=None, metadata={"help": "Gain g that divides the sine, or None for √n."})
    use_sinelora: InitVar[bool | None] = None
    sinelora_frequency: InitVar[float | None] = None
    sinelora_scaling: InitVar[float | None] = None
    freq: InitVar[float | None] = None
    s: InitVar[float | None] = None

    def __post_init__(
        self,
        use_sinelora: bool | None,
        sinelora_frequency: float | None,
        sinelora_scaling: float | None,
        freq: float | None,
        s: float | None,
    ) -> None:
        if use_sinelora is False:
            raise ValueError("use_sinelora=False is plain LoRA: take peft.LoraConfig")
        if self.factorization != "SineLowRank":
            raise ValueError("a SineLoraConfig is a sine: FactorizedLoraConfig takes factorization")
        for name in ("frequency", "gain"):
            if name in (self.factorization_args or {}):
                raise ValueError(f"factorization_args: {name} is a field of SineLoraConfig's own, give {name}=…")
        self.frequency = _one("frequency", "auto", self.frequency, sinelora_frequency=sinelora_frequency, freq=freq)
        self.gain = _one("gain", None, self.gain, sinelora_scaling=sinelora_scaling, s=s)
        super().__post_init__()
        for name in ("frequency", "gain"):
            if type(getattr(self, name)) not in (str, int, float, type(None)):
                setattr(self, name, float(getattr(self, name)))  # numpy's, which JSON does not know

    def _arguments(self) -> dict[str, Any]:
        return {**self.factorization_args, "frequency": self.frequency, "gain": self.gain}


def as_lora(config: FactorizedLoraConfig) -> LoraConfig:
    """The plain `LoraConfig` with which PEFT builds the layers that ours go into."""
    plain = copy.copy(config)
    plain.__class__ = LoraConfig
    return plain


def is_product(factorization: Factorization) -> bool:
    """Whether the factors are U [m, rank] and V [n, rank], which PEFT's own B and Aᵀ can hold."""
    rank, m, n = getattr(factorization, "rank", 0), *_example_size(factorization)
    with torch.device("meta"):
        factors = factorization.factors(m, n)
    shapes = {name: tuple(factor.shape) for name, factor in factors.items()}
    return list(shapes.items()) == [("U", (m, rank)), ("V", (n, rank))]


def _example_size(factorization: Factorization) -> tuple[int, int]:
    """Sizes (m, n) at which any family has fewer parameters than a dense weight."""
    size = (getattr(factorization, "rank", 0) + 1) ** 2
    return 64 * size, 60 * size


def _one(name: str, default: Any, value: Any, **others: Any) -> Any:
    """The one value that was given under any of the names."""
    given = {key: other for key, other in {name: value, **others}.items() if other not in (None, default)}
    if len(set(given.values())) > 1:
        raise ValueError(f"one value, please: {', '.join(f'{key}={other}' for key, other in given.items())}")
    return next(iter(given.values()), value)
