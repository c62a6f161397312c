"""From a torch model with packed attention to an ONNX graph."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from bento_kv.contract.cache import CacheSpec, cache_buffers
from bento_kv.contract.graph_io import (
    LOGIT_ROWS,
    LOGITS,
    MAX_LENGTH,
    ROWS,
    STEP_INPUTS,
    TOKENS,
    WIDTH,
)
from bento_kv.errors import ExportError, first_line
from bento_kv.export.attention import PACKED, PackedStep, PassThroughCache, tracing
from bento_kv.export.rotary import Rotary

# Sizes of the step to trace with: different from each other and from 0 and 1, so that no two axes are taken for one and
# none is baked.
_SIZES = {TOKENS: 7, ROWS: 3, WIDTH: 4, MAX_LENGTH: 16, LOGIT_ROWS: 5}


class PackedDecoder(nn.Module):
    """A causal LM as one packed step: tokens of all rows as one sequence, the cache as inputs and outputs."""

    def __init__(self, model: nn.Module, rotations: Sequence[Rotary | None]) -> None:
        super().__init__()
        self.model = model
        self.rotations = rotations

    def forward(
        self,
        input_ids: torch.Tensor,  # [tokens]
        position_ids: torch.Tensor,  # [tokens]
        gather_index: torch.Tensor,  # [rows, width]
        scatter_index: torch.Tensor,  # [tokens]
        logits_index: torch.Tensor,  # [logit_rows]
        seqlens_k: torch.Tensor,  # [rows]
        query_seqlens: torch.Tensor,  # [rows]
        total_sequence_length: torch.Tensor,  # scalar
        past: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        step = PackedStep(
            position_ids,
            gather_index,
            scatter_index,
            seqlens_k,
            query_seqlens,
            total_sequence_length,
            past,
            self.rotations,
        )
        with tracing(self.model, step):
            logits = self.model(
                input_ids=input_ids[None],
                position_ids=position_ids[None],
                past_key_values=PassThroughCache(),
                use_cache=True,
                logits_to_keep=logits_index,
            ).logits[0]
        return logits, [step.present[layer] for layer in range(len(past))]


def to_onnx(model: Any, layers: Sequence[CacheSpec], opset: int, rotations: Sequence[Rotary | None]) -> ir.Model:
    """Trace the model and translate it.

    Args:
        model: as transformers loads it.
        layers: geometry of its cache.
        opset: of the standard operators.
        rotations: what the survey observed, by call of a rotary function.

    Raises:
        ExportError: torch could not trace or translate it.
    """
    model.set_attn_implementation(PACKED)
    arguments, dynamic = _example(layers)
    with torch.no_grad(), quiet(), _onnx_friendly() as translations:
        try:
            program = torch.onnx.export(
                PackedDecoder(model, rotations),
                arguments,
                dynamo=True,
                dynamic_shapes=dynamic,
                opset_version=opset,
                input_names=[
                    *(spec.name for spec in STEP_INPUTS),
                    *(buffer.before for buffer in cache_buffers(layers)),
                ],
                output_names=[LOGITS, *(buffer.after for buffer in cache_buffers(layers))],
                custom_translation_table=translations,
                verbose=False,
            )
        except Exception as error:
            cause = error.__cause__ or error
            raise ExportError(
                f"{model.config.model_type}: torch could not turn it into ONNX ({type(cause).__name__}: {first_line(cause)})"
            ) from error
    if program is None:
        raise ExportError(f"{model.config.model_type}: torch returned no ONNX program")
    return program.model


def _example(layers: Sequence[CacheSpec]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """A step to trace with, and which of its axes are symbolic."""
    dims = {axis: torch.export.Dim(axis) for axis in _SIZES}
    step = [
        torch.ones([_SIZES[str(axis)] for axis in spec.shape], dtype=getattr(torch, spec.dtype)) for spec in STEP_INPUTS
    ]
    symbolic = [{at: dims[str(axis)] for at, axis in enumerate(spec.shape)} for spec in STEP_INPUTS]
    past, varying = [], []
    for number, layer in enumerate(layers):
        buffers = layer.buffers(number)
        past.append(tuple(torch.zeros(_SIZES[ROWS], *buffer.shape(_SIZES[MAX_LENGTH])) for buffer in buffers))
        axes = [(ROWS, *buffer.axes) for buffer in buffers]
        varying.append(tuple({at: dims[axis] for at, axis in enumerate(a) if isinstance(axis, str)} for a in axes))
    return (*step, past), (*symbolic, varying)


@contextmanager
def _onnx_friendly() -> Iterator[dict[Any, Any]]:
    """Transformers' own rewrites of what ONNX has no words for (experts above all), and their translations."""
    from transformers.exporters.exporter_onnx import _ONNX_TRANSLATION_TABLE
    from transformers.exporters.utils import apply_patches

    with apply_patches("onnx"):
        yield _ONNX_TRANSLATION_TABLE


@contextmanager
def quiet() -> Iterator[None]:
    """torch's exporter narrates through warnings and loggers what a user can do nothing about."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
