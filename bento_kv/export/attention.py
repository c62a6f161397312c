"""The attention that gets exported: one GroupQueryAttention over an in-place cache, tokens packed around it.

Transformers' attention interface lets a function stand in for the attention of nearly every architecture. Two are
registered here: one that only looks, so that the cache's geometry and what cannot be exported are known before the
export, and one that writes the node.

The operator is onnxruntime's com.microsoft::GroupQueryAttention (its documentation: ContribOperators.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bento_kv.contract.operators import (
    GROUP_QUERY_ATTENTION,
    KV_NUM_HEADS,
    LOCAL_WINDOW_SIZE,
    MICROSOFT,
    NUM_HEADS,
    AttentionInput,
    inputs_in_order,
)
from bento_kv.errors import UnsupportedArchitecture
from bento_kv.export import rotary
from bento_kv.export.rotary import Rotary

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
class Observations:
    """What the survey sees.

    Attributes:
        shapes: of the attention layers, by layer index.
        rotations: one a call of a rotary function, in the order of the calls: what the operator shall do instead, or
            None where the rotation stays in the graph.
    """

    shapes: dict[int, AttentionShape] = field(default_factory=dict)
    rotations: list[Rotary | None] = field(default_factory=list)
    turned: tuple[torch.Tensor, torch.Tensor] | None = None  # by the last call, until an attention layer has seen it

    def watch(self, function: rotary.Function) -> rotary.Function:
        """The function, watched."""

        def turn(q: Any, k: Any, cos: Any, sin: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
            self.turned = function(q, k, cos, sin, *args, **kwargs)
            self.rotations.append(rotary.recognise(q, k, cos, sin, self.turned))
            return self.turned

        return turn

    def attend(self, query: torch.Tensor, key: torch.Tensor) -> None:
        """An attention layer was given these; what it was given must be what was turned, or others changed it since."""
        turned, self.turned = self.turned, None
        if turned is not None and not all(
            torch.equal(x[..., : y.shape[-1]], y) for x, y in zip((query, key), turned, strict=True)
        ):
            self.rotations[-1] = None


@dataclass(slots=True)
class Rotation:
    """A rotation left to the operator: tables by token, `[tokens, pairs]`."""

    cos: torch.Tensor
    sin: torch.Tensor
    interleaved: bool


@dataclass(slots=True)
class PackedStep:
    """The tensors of the step that is being traced, and the cache that it writes.

    Attributes:
        positions: `[tokens]` position of each token.
        gather_index: `[rows, width]` token of each cell.
        scatter_index: `[tokens]` cell of each token.
        seqlens_k: `[rows]` length of each row after the step, minus 1.
        query_seqlens: `[rows]` tokens of each row in this step.
        total_sequence_length: scalar, an upper bound of the lengths.
        past: keys and values by layer, `[rows, kv_heads, max_length, head_dim]`.
        rotations: as the survey observed them.
        present: the same after the step; filled while tracing.
        rotation: what the next attention layer shall do, set by the rotary function before it.
    """

    positions: torch.Tensor
    gather_index: torch.Tensor
    scatter_index: torch.Tensor
    seqlens_k: torch.Tensor
    query_seqlens: torch.Tensor
    total_sequence_length: torch.Tensor
    past: list[tuple[torch.Tensor, torch.Tensor]]
    rotations: Sequence[Rotary | None] = ()
    present: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    rotation: Rotation | None = None
    _calls: int = 0

    def leave_to_operator(self, function: rotary.Function) -> rotary.Function:
        """A rotary function that leaves the turning to the operator wherever the survey saw that it can."""

        def turn(q: Any, k: Any, cos: Any, sin: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
            form = self.rotations[self._calls]
            self._calls += 1
            if form is None:
                return function(q, k, cos, sin, *args, **kwargs)
            self.rotation = Rotation(form.table(cos), form.table(sin), form.interleaved)
            return q, k

        return turn


# The interface hands an attention function neither the cache nor anything of ours: what is traced stands here.
_survey: ContextVar[Observations] = ContextVar("survey")
_step: ContextVar[PackedStep] = ContextVar("step")


@contextmanager
def surveying(model: torch.nn.Module) -> Iterator[Observations]:
    """Within it, every attention layer of the model that runs under `SURVEY` is observed."""
    found = Observations()
    token = _survey.set(found)
    try:
        with rotary.replaced(model, found.watch):
            yield found
    finally:
        _survey.reset(token)


@contextmanager
def tracing(model: torch.nn.Module, step: PackedStep) -> Iterator[PackedStep]:
    """Within it, the model's attention layers under `PACKED` read and write the cache of `step`."""
    token = _step.set(step)
    try:
        with rotary.replaced(model, step.leave_to_operator):
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
    seen = _survey.get()
    seen.shapes[_layer_index(module)] = AttentionShape(query.shape[1], key.shape[1], key.shape[3], value.shape[3])
    seen.attend(query, key)
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
        NUM_HEADS: heads,
        KV_NUM_HEADS: key.shape[1],
        "scale": float(head_dim**-0.5 if scaling is None else scaling),
        "do_rotary": 0,
    }
    if softcap:
        attributes["softcap"] = float(softcap)
    window = sliding_window or getattr(module, "sliding_window", None)
    if window:
        attributes[LOCAL_WINDOW_SIZE] = int(window)
    given: dict[AttentionInput, torch.Tensor | None] = {
        AttentionInput.QUERY: qkv,
        AttentionInput.PAST_KEY: past_key,
        AttentionInput.PAST_VALUE: past_value,
        AttentionInput.SEQLENS_K: step.seqlens_k,
        AttentionInput.TOTAL_SEQUENCE_LENGTH: step.total_sequence_length,
        AttentionInput.HEAD_SINK: s_aux,
        AttentionInput.QUERY_SEQLENS: step.query_seqlens,
    }
    rotation, step.rotation = step.rotation, None
    if rotation is not None:
        attributes |= {"do_rotary": 1, "rotary_interleaved": int(rotation.interleaved)}
        given |= {
            AttentionInput.COS_CACHE: rotation.cos,
            AttentionInput.SIN_CACHE: rotation.sin,
            AttentionInput.POSITION_IDS: step.positions[step.gather_index],
        }
    out, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
        f"{MICROSOFT}::{GROUP_QUERY_ATTENTION}",
        inputs_in_order(given),
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
