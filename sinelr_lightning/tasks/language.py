"""Fine-tuning of causal language models by adapters."""

from typing import Any, ClassVar

from sinelr_lightning.tasks.adapted import AdaptedTask
from sinelr_lightning.tasks.causal import CausalTask

__all__ = ["LanguageTask"]


class LanguageTask(AdaptedTask, CausalTask):
    """Fine-tunes a causal language model by an adapter; the loss is over the tokens that the data marks.

    Figures are those of `CausalTask`, arguments those of `AdaptedTask`.
    """

    model_class: ClassVar[str] = "AutoModelForCausalLM"
    task_type: ClassVar[str] = "CAUSAL_LM"

    def __init__(self, **adapted: Any) -> None:
        super().__init__(**adapted)

    @property
    def called(self) -> str:
        """The base's name."""
        return self.base_name

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the form of what is asked."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["form"] = self.form

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the form back."""
        super().on_load_checkpoint(checkpoint)
        self.form = checkpoint["form"]
