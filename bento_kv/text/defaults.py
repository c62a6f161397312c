"""What a request's unset sampling fields mean: the model's own generation defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bento_kv.contract.companions import GENERATION_CONFIG, read_companion
from bento_kv.contract.manifest import Manifest
from bento_kv.engine.request import SamplingParams
from bento_kv.errors import ManifestError


def read_defaults(directory: Path, manifest: Manifest) -> SamplingParams:
    """Sampling defaults of a decoder directory, read as transformers' `generate` reads `generation_config.json`.

    Without `do_sample` the model answers greedily; with it, temperature, top-k, top-p and min-p are the file's, or
    transformers' own defaults (a top-k of 50). The repetition penalty counts in both. The manifest's end-of-sequence ids
    end an answer.

    Raises:
        ManifestError: the file is missing, not JSON, or has no number where one is wanted.
    """
    path = directory / GENERATION_CONFIG
    try:
        config = read_companion(path)
    except ValueError as error:
        raise ManifestError(str(error)) from error
    sampled = bool(config.get("do_sample"))
    try:
        return SamplingParams(
            temperature=_number(config, "temperature", 1.0) if sampled else 0.0,
            top_k=max(0, int(_number(config, "top_k", 50))) if sampled else 0,
            top_p=_number(config, "top_p", 1.0) if sampled else 1.0,
            min_p=_number(config, "min_p", 0.0) if sampled else 0.0,
            repetition_penalty=_number(config, "repetition_penalty", 1.0),
            stop_token_ids=frozenset(manifest.token_ids.eos),
        )
    except (TypeError, ValueError) as error:
        raise ManifestError(f"{path} has no number where one is wanted: {error}") from error


def _number(config: dict[str, Any], name: str, otherwise: float) -> float:
    value = config.get(name)
    return otherwise if value is None else float(value)
