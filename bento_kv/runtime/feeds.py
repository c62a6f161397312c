"""What a step feeds besides the cache, in the types and shapes that a graph declares."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bento_kv.contract.graph_io import TensorSpec
from bento_kv.runtime.interface import Interface

# bfloat16 is no type of numpy's, which is what goes in and comes out here.
NUMPY = {
    "float": np.float32,
    "float16": np.float16,
    "double": np.float64,
    "int64": np.int64,
    "int32": np.int32,
    "bool": np.bool_,
}


def step_feeds(
    interface: Interface,
    ids: NDArray[np.int64],
    held: int,
    mask: NDArray[np.int64] | None,
    positions: NDArray[np.int64] | None,
) -> dict[str, NDArray[np.generic]]:
    """All inputs but the cache."""
    rows, tokens = ids.shape
    feeds: dict[str, NDArray[np.generic]] = {interface.ids.name: ids.astype(NUMPY[interface.ids.dtype])}
    if interface.mask is not None:
        seen = np.ones((rows, held + tokens), np.int64) if mask is None else mask
        feeds[interface.mask.name] = _as_mask(interface.mask, seen, held, tokens)
    if interface.positions is not None:
        own = np.broadcast_to(np.arange(held, held + tokens), (rows, tokens)) if positions is None else positions
        own = own[0] if len(interface.positions.shape) == 1 else own
        feeds[interface.positions.name] = np.ascontiguousarray(own, NUMPY[interface.positions.dtype])
    if interface.branch is not None:
        feeds[interface.branch.name] = np.full([1] * len(interface.branch.shape), held > 0)
    if interface.write is not None:
        feeds[interface.write.name] = _places(interface.write, rows, held, tokens)
    if interface.keep is not None:
        feeds[interface.keep.name] = _all_logits(interface.keep, tokens)
    for spec in interface.zeros:
        feeds[spec.name] = np.zeros((rows, tokens), NUMPY[spec.dtype])
    return feeds


def _places(spec: TensorSpec, rows: int, held: int, tokens: int) -> NDArray[np.generic]:
    """Where the new tokens go: the column of each; or how many there are, as one number or one a row."""
    dtype = np.dtype(NUMPY[spec.dtype])
    if not spec.shape:
        return np.array(held, dtype)
    if spec.shape[-1] == 1:
        return np.full([1] if len(spec.shape) == 1 else [rows, 1], held, dtype)
    if "len" in spec.name.lower():
        return np.full([rows], held, dtype)
    columns = np.arange(held, held + tokens).astype(dtype)
    return columns if len(spec.shape) == 1 else np.ascontiguousarray(np.broadcast_to(columns, (rows, tokens)))


def _all_logits(spec: TensorSpec, tokens: int) -> NDArray[np.generic]:
    """What asks for every token's logits: the number 0, or each token's index."""
    if spec.shape and not isinstance(spec.shape[0], int):
        return np.arange(tokens, dtype=NUMPY[spec.dtype])
    return np.zeros([1] * len(spec.shape), NUMPY[spec.dtype])


def _as_mask(spec: TensorSpec, seen: NDArray[np.int64], held: int, tokens: int) -> NDArray[np.generic]:
    """A mask of the form that the graph takes: by position; or by query and position, added to scores if it is float."""
    if len(spec.shape) == 2:
        return seen.astype(NUMPY[spec.dtype])
    length = seen.shape[1]
    # The new tokens are the last columns, unless the columns go on behind them.
    first = held if held + tokens < length else length - tokens
    causal = np.arange(length) <= np.arange(first, first + tokens)[:, None]
    allowed = causal & (seen[:, None, None, :] > 0)  # [rows, 1, tokens, length]
    if spec.dtype not in ("float", "float16", "double"):
        return allowed.astype(NUMPY[spec.dtype])
    dtype = np.dtype(NUMPY[spec.dtype])
    return np.where(allowed, 0, np.finfo(dtype).min).astype(dtype)
