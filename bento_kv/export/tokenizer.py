"""What travels with a decoder besides its weights: tokenizer, chat template, configuration."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig

from bento_kv.contract.manifest import TokenIds
from bento_kv.errors import ExportError, SourceError, first_line
from bento_kv.source import ModelSource
from bento_kv.text.chat_template import ChatTemplate


def load_tokenizer(source: ModelSource) -> Any:
    """The source's tokenizer, in the form that `tokenizer.json` can hold.

    Raises:
        ExportError: there is none, or it exists only in Python.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.path, trust_remote_code=False)
    except Exception as error:  # transformers raises nearly anything here, from OSError to KeyError
        raise ExportError(
            f"{source.id}: no tokenizer could be loaded from {source.path} ({first_line(error)}). "
            "Put the model's tokenizer.json and tokenizer_config.json there."
        ) from error
    if not tokenizer.is_fast:
        raise ExportError(
            f"{source.id}: its tokenizer, {type(tokenizer).__name__}, has no tokenizer.json form. "
            "Convert it with the tokenizers library and put tokenizer.json into the model directory."
        )
    return tokenizer


def load_generation_config(source: ModelSource, config: PreTrainedConfig) -> GenerationConfig:
    """The source's generation defaults, or what its configuration implies."""
    if not (source.path / "generation_config.json").is_file():
        return GenerationConfig.from_model_config(config)
    try:
        return GenerationConfig.from_pretrained(source.path)
    except (OSError, ValueError, TypeError) as error:
        raise SourceError(f"{source.id}: its generation_config.json cannot be read: {first_line(error)}") from error


def write_companions(source: ModelSource, tokenizer: Any, generation: GenerationConfig, directory: Path) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja` (if there is one) and both configs."""
    tokenizer.save_pretrained(directory)
    template = directory / "chat_template.jinja"
    if template.is_file():
        ChatTemplate(template.read_text(encoding="utf-8"), {})  # refuses one that is not valid
    shutil.copyfile(source.path / "config.json", directory / "config.json")
    original = source.path / "generation_config.json"
    if original.is_file():
        shutil.copyfile(original, directory / "generation_config.json")
    else:
        generation.save_pretrained(directory)


def token_ids(tokenizer: Any, generation: GenerationConfig) -> TokenIds:
    """Special tokens: the generation config's word goes before the tokenizer's."""
    eos = generation.eos_token_id if generation.eos_token_id is not None else tokenizer.eos_token_id
    many = eos if isinstance(eos, list) else [] if eos is None else [eos]
    bos = generation.bos_token_id if generation.bos_token_id is not None else tokenizer.bos_token_id
    pad = generation.pad_token_id if generation.pad_token_id is not None else tokenizer.pad_token_id
    return TokenIds(bos=bos, eos=tuple(many), pad=pad)
