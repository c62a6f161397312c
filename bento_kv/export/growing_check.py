"""The growing interface's names, and the check of an exported file against its model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from bento_kv.contract.graph_io import (
    ATTENTION_MASK,
    INPUT_IDS,
    LOGITS,
    POSITION_IDS,
    cache_names,
    past_name,
    present_name,
)
from bento_kv.errors import ExportError, first_line

_CHECK_LIMIT = 1e-3  # of the largest logit; a right export is a thousand times closer


@dataclass(frozen=True, slots=True)
class IoNames:
    """Names of the graph's inputs and outputs.

    Attributes:
        past, present: key, value, key, value, ... by layer; those of `graph_io` unless given.
    """

    input_ids: str = INPUT_IDS
    attention_mask: str = ATTENTION_MASK
    position_ids: str = POSITION_IDS
    logits: str = LOGITS
    past: tuple[str, ...] = ()
    present: tuple[str, ...] = ()

    def caches(self, layers: int) -> tuple[list[str], list[str]]:
        """Names of the pasts and of the presents.

        Raises:
            ExportError: names are given, and not two for each layer.
        """
        past = list(self.past or cache_names(past_name, layers))
        present = list(self.present or cache_names(present_name, layers))
        for names in (past, present):
            if len(names) != 2 * layers:
                raise ExportError(
                    f"{len(names)} names were given for the cache of {layers} layers; it takes two a layer"
                )
        return past, present


@dataclass(frozen=True, slots=True)
class Geometry:
    """The cache of one layer; values may be of another size than keys (latent attention)."""

    heads: int
    key_dim: int
    value_dim: int


@torch.no_grad()
def check_growing(file: Path, model: Any, layers: Sequence[Geometry], names: IoNames) -> None:
    """Prefill from an empty past, a chunk and a token, two rows of which one is padded, against the model without cache.

    Raises:
        ExportError: the runtime refuses the graph, or its logits differ.
    """
    model_type = model.config.model_type
    try:
        session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise ExportError(
            f"{model_type}: onnxruntime {ort.__version__} does not load what was exported: {first_line(error)}"
        ) from error
    chunks, padded = (5, 3, 1), 2
    total = sum(chunks)
    ids = np.random.default_rng(0).integers(0, model.config.get_text_config(decoder=True).vocab_size, (2, total))
    has_mask = any(value.name == names.attention_mask for value in session.get_inputs())
    starts = (0, padded if has_mask else 0)
    mask = np.arange(total) >= np.array(starts)[:, None]
    logits = _run_chunks(session, names, layers, ids, mask.astype(np.int64), chunks)
    for row, start in enumerate(starts):
        expected = model(input_ids=torch.from_numpy(ids[row : row + 1, start:]), use_cache=False).logits[0].numpy()
        deviation = float(np.abs(logits[row, start:] - expected).max() / np.abs(expected).max())
        if not deviation <= _CHECK_LIMIT:
            raise ExportError(
                f"{model_type}: the exported graph's logits differ from the model's by {deviation:.1e} of the largest; "
                "its code does not trace to a graph that is right for all sizes"
            )


def _run_chunks(
    session: ort.InferenceSession,
    names: IoNames,
    layers: Sequence[Geometry],
    ids: NDArray[np.int64],
    mask: NDArray[np.int64],
    chunks: Sequence[int],
) -> NDArray[np.float32]:
    """Logits of all chunks, each with the cache of those before: `[rows, tokens, vocabulary]`."""
    taken = {value.name for value in session.get_inputs()}
    past_names, present_names = names.caches(len(layers))
    rows = ids.shape[0]
    sizes = [(g.heads, dim) for g in layers for dim in (g.key_dim, g.value_dim)]
    past = [np.zeros((rows, heads, 0, dim), np.float32) for heads, dim in sizes]
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    logits, at = [], 0
    for tokens in chunks:
        now = slice(at, at + tokens)
        feeds: dict[str, NDArray[np.generic]] = {
            names.input_ids: ids[:, now],
            names.attention_mask: mask[:, : now.stop],
            names.position_ids: positions[:, now],
        }
        feeds = {name: array for name, array in feeds.items() if name in taken}
        feeds.update(zip(past_names, past, strict=True))
        first, *past = session.run([names.logits, *present_names], feeds)
        logits.append(first)
        at = now.stop
    return np.concatenate(logits, axis=1)
