"""Loading an adapter by name into a PEFT model, with what PEFT does not look at."""

from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from peft.utils import CONFIG_NAME

from sinelr_lightning.adapters.config import FactorizedLoraConfig

__all__ = ["FORMULA", "load_adapter"]

# Fields of a configuration that say what its factors mean.
FORMULA = ["factorization", "factorization_args", "frequency", "gain", "hadamard"]

_by_peft = PeftModel.load_adapter


def load_adapter(self: PeftModel, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
    """As PEFT does, which reads a file's configuration only where the model has no adapter of that name yet.

    Raises:
        ValueError: the file's adapter is of another formula than the one that it is loaded into, if either is ours;
            a refused adapter is taken out of the model again.
    """
    before = self.peft_config.get(adapter_name)
    if before is not None:
        _check_formula(before, Path(model_id, kwargs.get("subfolder") or "", CONFIG_NAME), adapter_name)
    try:
        return _by_peft(self, model_id, adapter_name, *args, **kwargs)
    except Exception as error:
        config = self.peft_config.get(adapter_name)
        if before is None and isinstance(config, FactorizedLoraConfig):
            self.delete_adapter(adapter_name)
        if isinstance(config, FactorizedLoraConfig) and isinstance(error, KeyError):  # of a module trained whole
            message = f"the weights do not fit adapter {adapter_name} of this model: missing {error.args[0]}"
            raise ValueError(message) from error
        raise


def _check_formula(config: Any, file: Path, adapter: str) -> None:
    if not file.is_file():
        return
    given = PeftConfig.from_pretrained(str(file.parent))
    if not any(isinstance(one, FactorizedLoraConfig) for one in (config, given)):
        return
    for key in ("use_dora", *FORMULA):
        there, here = getattr(given, key, None), getattr(config, key, None)
        if there != here:
            raise ValueError(
                f"{file}: its adapter has {key} {there!r}, adapter {adapter} of this model {here!r}: load it under "
                "another name"
            )
