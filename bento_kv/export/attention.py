"""The attention that gets exported: one GroupQueryAttention over an in-place cache, tokens packed around it.

Transformers' attention interface lets a function stand in for the attention of nearly every architecture. Two are
registered here: one that only looks, so that the cache's geometry and what cannot be exported are known before the
export, and one that writes the node.

The operator is onnxruntime's com.microsoft::GroupQueryAttention (its documentation: ContribOperators.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bento_kv.errors import UnsupportedArchitecture

SURVEY = "bento_kv_survey"
PACKED = "bento_kv_packed"

# What transformers' attention layers hand to an attention function, apart from the tensors: what the exported node
# carries, and what changes nothing in inference over a cache.
_CARRIED = frozenset({"scaling", "softcap", "sliding_window", "s_aux"})
_WITHOUT_EFFECT = frozenset(
    {
        "dropout",
        "is_causal",
        "use_cache",
        "position_ids",
        "cache_position",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
    }
)


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What one attention layer asks of a cache."""

    query_heads: int
    kv_heads: int
    key_dim: int
    value_dim: int


@dataclass(slots=True)
class PackedStep:
    """The tensors of the step that is being traced, and the cache that it writes.

    Attributes:
        gather_index: `[rows, width]` token of each cell.
        scatter_index: `[tokens]` cell of each token.
        seqlens_k: `[rows]` length of each row after the step, minus 1.
        query_seqlens: `[rows]` tokens of each row in this step.
        total_sequence_length: scalar, an upper bound of the lengths.
        past: keys and values by layer, `[rows, kv_heads, max_length, head_dim]`.
        present: the same after the step; filled while tracing.
    """

    gather_index: torch.Tensor
    scatter_index: torch.Tensor
    seqlens_k: torch.Tensor
    query_seqlens: torch.Tensor
    total_sequence_length: torch.Tensor
    past: list[tuple[torch.Tensor, torch.Tensor]]
    present: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


# The interface hands an attention function neither the cache nor anything of ours: what is traced stands here.
_survey: ContextVar[dict[int, AttentionShape]] = ContextVar("survey")
_step: ContextVar[PackedStep] = ContextVar("step")


@contextmanager
def surveying() -> Iterator[dict[int, AttentionShape]]:
    """Within it, every attention layer that runs under `SURVEY` notes its shape by layer index."""
    found: dict[int, AttentionShape] = {}
    token = _survey.set(found)
    try:
        yield found
    finally:
        _survey.reset(token)


@contextmanager
def tracing(step: PackedStep) -> Iterator[PackedStep]:
    """Within it, attention layers under `PACKED` read and write the cache of `step`."""
    token = _step.set(step)
    try:
        yield step
    finally:
        _step.reset(token)


class PassThroughCache:
    """Stands where transformers expects a cache; keys and values go on to the attention function as they are."""

    is_compileable = False
    is_initialized = True
    layers: tuple[Any, ...] = ()
    is_sliding = (False,)
    is_linear = (False,)
    is_dummy = (False,)

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key, value

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, *_: Any, **__: Any) -> tuple[int, int]:
        return 0, 0

    def get_query_offset(self, *_: Any, **__: Any) -> int:
        return 0


def _layer_index(module: torch.nn.Module) -> int:
    index = getattr(module, "layer_idx", None)
    if index is None:
        raise UnsupportedArchitecture(f"{type(module).__name__} does not say which layer it is (no layer_idx)")
    return int(index)


def survey_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, query_heads, tokens, head_dim]
    key: torch.Tensor,  # [1, kv_heads, tokens, head_dim]
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Note the layer's shape, and refuse what `packed_attention` would leave out; the output is of no use."""
    name = type(module).__name__
    if attention_mask is not None:
        raise UnsupportedArchitecture(
            f"{name} adds a mask or bias of its own to the attention scores (ALiBi, relative positions), "
            "which an in-place cache cannot carry"
        )
    unknown = sorted(k for k, v in options.items() if v is not None and k not in _CARRIED and k not in _WITHOUT_EFFECT)
    if unknown:
        raise UnsupportedArchitecture(
            f"{name} gives its attention {', '.join(unknown)}, which the exporter does not know how to carry over"
        )
    _survey.get()[_layer_index(module)] = AttentionShape(query.shape[1], key.shape[1], key.shape[3], value.shape[3])
    return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, query_heads, tokens, head_dim]
    key: torch.Tensor,  # [1, kv_heads, tokens, head_dim]
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Gather the packed tokens into rows, attend, scatter them back.

    Causality, each row's length and the window are the operator's work: no mask arithmetic is in the graph.
    """
    step = _step.get()
    heads, tokens, head_dim = query.shape[1:]
    rows, width = step.gather_index.shape
    flat = [x.transpose(1, 2).reshape(tokens, -1) for x in (query, key, value)]
    qkv = torch.cat(flat, dim=-1)[step.gather_index]  # [rows, width, (query_heads + 2 kv_heads) * head_dim]
    past_key, past_value = step.past[_layer_index(module)]
    attributes: dict[str, Any] = {
        "num_heads": heads,
        "kv_num_heads": key.shape[1],
        "scale": float(head_dim**-0.5 if scaling is None else scaling),
        "do_rotary": 0,
    }
    if softcap:
        attributes["softcap"] = float(softcap)
    window = sliding_window or getattr(module, "sliding_window", None)
    if window:
        attributes["local_window_size"] = int(window)
    # The operator's inputs by position; key and value travel inside the packed query, rotary is done outside.
    inputs = [qkv, None, None, past_key, past_value, step.seqlens_k, step.total_sequence_length]
    inputs += [None, None, None, None, s_aux, None, None, None, None, step.query_seqlens]
    out, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        inputs,
        attributes,
        dtypes=[query.dtype] * 3,
        shapes=[[rows, width, heads * head_dim], list(past_key.shape), list(past_value.shape)],
        version=1,
    )
    step.present[_layer_index(module)] = (present_key, present_value)
    packed = out.reshape(rows * width, heads * head_dim)[step.scatter_index]
    return packed.reshape(1, tokens, heads, head_dim), None


def _no_mask(*_: Any, **__: Any) -> None:
    return None


def register() -> None:
    """Make both functions known to transformers; doing it twice changes nothing."""
    for name, function in ((SURVEY, survey_attention), (PACKED, packed_attention)):
        ALL_ATTENTION_FUNCTIONS.register(name, function)
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, _no_mask)
