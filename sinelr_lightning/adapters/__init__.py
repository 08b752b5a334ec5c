"""Sine LoRA, sine DoRA and any other factorization as adapters of PEFT; importing it makes them known there."""

from typing import Any

from peft import PeftModel, PeftType
from peft.config import PeftConfigMixin
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils.hotswap import CONFIG_KEYS_TO_CHECK

from sinelr_lightning.adapters.config import FactorizedLoraConfig, SineLoraConfig
from sinelr_lightning.adapters.loading import FORMULA, load_adapter
from sinelr_lightning.adapters.model import FactorizedLoraModel

__all__ = ["FactorizedLoraConfig", "FactorizedLoraModel", "SineLoraConfig"]

OURS = ("SINELORA", "FACTORIZEDLORA")


def _as_ours(**fields: Any) -> dict[str, Any]:
    """Read the fields of our files, and files of type LORA that hold a sine's fields, of the authors or the proposal.

    PEFT itself would drop the fields that it does not know, and answer with plain B·A.
    """
    if fields.get("peft_type") == "LORA" and (fields.get("use_sinelora") or fields.get("freq") is not None):
        fields["peft_type"] = "SINELORA"
    if fields.get("peft_type") in OURS and "alpha" in fields:
        fields["lora_alpha"] = fields.pop("alpha")
    return fields


PeftModel.load_adapter = load_adapter
# PEFT's own function for registering refuses names that are not in its list of types.
PEFT_TYPE_TO_CONFIG_MAPPING["SINELORA"] = SineLoraConfig  # ty: ignore[invalid-assignment]
PEFT_TYPE_TO_CONFIG_MAPPING["FACTORIZEDLORA"] = FactorizedLoraConfig  # ty: ignore[invalid-assignment]
PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LORA] = FactorizedLoraModel
# Of all configurations: Transformers reads a file as a `PeftConfig`, before it knows the type.
PeftConfigMixin.check_kwargs = staticmethod(_as_ours)  # ty: ignore[invalid-assignment]
CONFIG_KEYS_TO_CHECK[PeftType.LORA] += FORMULA
