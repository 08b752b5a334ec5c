"""What all tasks on language models share: reading text with the model's own tokenizer."""

from typing import Any

from sinelr_lightning.datamodules.text_data import TextData
from sinelr_lightning.tasks.base import Task

__all__ = ["TextTask"]


class TextTask(Task):
    """Base of the tasks on language models. A subclass has a `tokenizer` and a `network` of transformers."""

    tokenizer: Any
    network: Any

    def read(self, data: TextData) -> None:
        """Have the data cut into tokens.

        Raises:
            UserError: the tokenizer or the model cannot read a sample.
        """
        data.use_tokenizer(self.tokenizer)
        data.check_room(self.network.get_input_embeddings().weight.shape[0], self.positions)

    @property
    def positions(self) -> int | None:
        """How many tokens the model reads; None where the configuration sets no bound."""
        room = getattr(self.network.config.get_text_config(), "max_position_embeddings", None)
        if room is None or room < 1:  # XLNet says −1
            return None
        # RoBERTa and its kin count positions from behind that of the padding.
        tables = (m for name, m in self.network.named_modules() if name.endswith("embeddings.position_embeddings"))
        behind = getattr(next(tables, None), "padding_idx", None)
        return room if behind is None else room - behind - 1
