"""The JSON files beside a model's weights: each is one object, and what is none names its file and the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG = "generation_config.json", "tokenizer.json", "tokenizer_config.json"
COMPANIONS = (
    "config.json",
    GENERATION_CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "model.safetensors.index.json",
)
_REMEDY = "copy it again from the model it belongs to"


def read_companion(file: Path) -> dict[str, Any]:
    """The object in a file.

    Raises:
        ValueError: the file is missing, or is not a JSON object; the message names it and what to do.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror or error}): {_REMEDY}") from error
    except UnicodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {_REMEDY}") from error
    except (ValueError, RecursionError) as error:
        what = "a pointer of Git LFS, not the file itself" if _is_pointer(file) else f"not JSON ({error})"
        raise ValueError(f"{file} is {what}: {_REMEDY}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{file} is not a JSON object, but a {type(document).__name__}: {_REMEDY}")  # noqa: TRY004 - of a file, not of an argument
    return document


def _is_pointer(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(64).startswith(b"version https://git-lfs")
