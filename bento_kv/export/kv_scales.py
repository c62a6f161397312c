"""Scales of an int8 KV cache: how large each channel of the keys and values gets."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from bento_kv import errors
from bento_kv.contract import plan
from bento_kv.errors import ExportError, first_line

# By layer: scales of keys and of values, each [kv_heads, head_dim].
Scales = list[tuple[NDArray[np.float32], NDArray[np.float32]]]

_LENGTH = 512
_RANDOM = 2
# What was seen is not the largest that will come: beyond this, values are clipped.
_MARGIN = 1.1
_LEAST = 1e-6
_STEPS = 127


def cache_scales(model: Any, tokenizer: Any, max_length: int) -> Scales:
    """Scales per channel, from the largest magnitudes over some text of ours and over random tokens.

    Args:
        model: as transformers loads it; its attention function is left at another one.
        tokenizer: of the model.
        max_length: positions that the model may be given.

    Raises:
        ExportError: the model does not compute its keys and values as floats by layer.
    """
    model.set_attn_implementation("eager")
    largest: list[list[NDArray[np.float32]]] = []
    for ids in _sequences(tokenizer, model.config.get_text_config(decoder=True).vocab_size, min(_LENGTH, max_length)):
        cache: Any = DynamicCache()
        try:
            with torch.no_grad():
                model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1)
            seen = [
                [side[0].abs().amax(dim=1).numpy() for side in (layer.keys, layer.values)] for layer in cache.layers
            ]
        except Exception as error:  # the model's own code raises what it likes
            raise ExportError(
                f"the ranges of the keys and values could not be found ({first_line(error)}); export with a float cache"
            ) from error
        largest = [
            [np.maximum(one, other) for one, other in zip(*pair, strict=True)]
            for pair in zip(largest or seen, seen, strict=True)
        ]
    factor = np.float32(_MARGIN / _STEPS)
    return [(np.maximum(key, _LEAST) * factor, np.maximum(value, _LEAST) * factor) for key, value in largest]


def _sequences(tokenizer: Any, vocab_size: int, length: int) -> list[Sequence[int]]:
    """Some code and prose, and tokens at random, which leave no channel idle."""
    rng = np.random.default_rng(7)
    texts = [inspect.getsource(module) for module in (errors, plan)]
    found: list[Sequence[int]] = [tokenizer(text, truncation=True, max_length=length)["input_ids"] for text in texts]
    found += [rng.integers(0, vocab_size, length).tolist() for _ in range(_RANDOM)]
    return [ids for ids in found if ids]
