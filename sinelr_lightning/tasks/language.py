"""Fine-tuning of causal language models by adapters."""

from typing import ClassVar

from sinelr_lightning.tasks.adapted import AdaptedTask
from sinelr_lightning.tasks.causal import CausalTask

__all__ = ["LanguageTask"]


class LanguageTask(AdaptedTask, CausalTask):
    """Fine-tunes a causal language model by an adapter; the loss is over the tokens that the data marks.

    Figures are those of `CausalTask`, arguments those of `AdaptedTask`.
    """

    model_class: ClassVar[str] = "AutoModelForCausalLM"
    task_type: ClassVar[str] = "CAUSAL_LM"

    @property
    def called(self) -> str:
        """The base's name."""
        return self.base_name
