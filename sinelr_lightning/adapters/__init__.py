"""Sine LoRA, sine DoRA and any other factorization as adapters of PEFT; importing it makes them known there."""

from typing import Any

from peft import PeftType
from peft.config import PeftConfigMixin
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils.hotswap import CONFIG_KEYS_TO_CHECK

from sinelr_lightning.adapters.config import FactorizedLoraConfig, SineLoraConfig
from sinelr_lightning.adapters.model import FactorizedLoraModel

__all__ = ["FactorizedLoraConfig", "FactorizedLoraModel", "SineLoraConfig"]


def _sine_if_the_file_says_so(**fields: Any) -> dict[str, Any]:
    """Read files of type LORA that hold a sine's fields, of the authors or of the proposal to PEFT, as ours.

    PEFT itself would drop the fields that it does not know, and answer with plain B·A.
    """
    if fields.get("peft_type") == "LORA" and (fields.get("use_sinelora") or fields.get("freq")):
        return {**fields, "peft_type": "SINELORA"}
    return fields


# PEFT's own function for registering refuses names that are not in its list of types.
PEFT_TYPE_TO_CONFIG_MAPPING["SINELORA"] = SineLoraConfig  # ty: ignore[invalid-assignment]
PEFT_TYPE_TO_CONFIG_MAPPING["FACTORIZEDLORA"] = FactorizedLoraConfig  # ty: ignore[invalid-assignment]
PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LORA] = FactorizedLoraModel
# Of all configurations: Transformers reads a file as a `PeftConfig`, before it knows the type.
PeftConfigMixin.check_kwargs = staticmethod(_sine_if_the_file_says_so)  # ty: ignore[invalid-assignment]
CONFIG_KEYS_TO_CHECK[PeftType.LORA] += ["factorization", "factorization_args", "frequency", "gain", "hadamard"]
