"""The common interface with a growing cache: a past goes in, and the past with the new keys and values comes out.

Nearly every loop written for ONNX decoders speaks it. It copies the cache in each step, which the in-place layout does
not, but it asks nothing of a model but that it has a cache: attention code of its own (bloom, gptj, mpt) is no hindrance.
"""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from transformers import DynamicCache
from transformers.utils import logging as transformers_logging

from bento_kv.errors import ExportError, UnsupportedArchitecture, first_line
from bento_kv.export.files import data_beside, staged
from bento_kv.export.graph import clean_up
from bento_kv.export.growing_check import Geometry, IoNames, check_growing
from bento_kv.export.growing_graph import name_interface, widen_bfloat16
from bento_kv.export.model import fix_rotary, load_config, read_weights
from bento_kv.export.tracing import quiet
from bento_kv.source import ModelSource

DEFAULT_OPSET = 20
MIN_OPSET = 18  # what torch's exporter writes at least

_INLINE = 2**30  # bytes of weights up to which they stay in the file; protobuf's own limit is 2 GiB


def export_growing(
    source: ModelSource | str,
    file: Path,
    *,
    names: IoNames | None = None,
    opset: int | None = None,
    positions: bool = True,
    mask: bool = True,
    external_data: bool | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> None:
    """Write a causal LM as one ONNX file for all steps, in fp32.

    Inputs `input_ids [batch, sequence]`, `attention_mask [batch, past + sequence]`, `position_ids [batch, sequence]`,
    `past_key_values.N.key` and `.value` `[batch, heads, past, head_dim]`; outputs `logits [batch, sequence,
    vocabulary]`, `present.N.key` and `.value` `[batch, heads, past + sequence, head_dim]`. Batch, sequence and past
    vary, and past may be 0. Rows may be padded on the left where there is a mask. The written file is run against the
    model before it takes its place.

    Args:
        source: a Hugging Face model directory, a hub id, or `demo`.
        file: where to; weights beyond 1 GiB go to `<file>.data`.
        names: of inputs and outputs.
        opset: of the graph.
        positions: position ids are an input, if the model has them; else they follow from the mask or the past.
        mask: the attention mask is an input.
        external_data: weights go to `<file>.data`, or not, whatever their size.
        progress: told what is being done.

    Raises:
        SourceError: the model cannot be found or read.
        UnsupportedArchitecture: its state is not keys and values by layer.
        ExportError: it cannot be traced, comes out wrong, or cannot be written.
    """
    if opset is not None and opset < MIN_OPSET:
        raise ExportError(f"opset {opset} is older than {MIN_OPSET}, the first that torch's exporter writes")
    if file.exists():
        raise ExportError(f"{file} exists already; give another file")
    found = ModelSource.find(source) if isinstance(source, str) else source
    config = load_config(found)
    progress(f"reading {found.id}")
    model = read_weights(found, config, progress)
    layers = _survey(model)
    fix_rotary(model)
    names = names or IoNames()
    names.caches(len(layers))
    progress(f"tracing {type(model).__name__}, {len(layers)} layers")
    step = _GrowingStep(model, positions=positions and _takes_positions(model), mask=mask)
    graph = _trace(step, layers, names, opset or DEFAULT_OPSET)
    with staged(file) as target:
        progress("writing weights")
        _save(graph, target, external_data)
        progress("running it against the model")
        check_growing(target, model, layers, names)


@torch.no_grad()
def _survey(model: Any) -> list[Geometry]:
    """Run the model once, and see what it keeps.

    Raises:
        UnsupportedArchitecture: something else than keys and values by layer.
    """
    name = model.config.model_type
    try:
        # Without a configuration every layer keeps all positions, those with a sliding window too.
        cache: Any = DynamicCache()
        ids = torch.tensor([[0, 1, 2]]) % model.config.get_text_config(decoder=True).vocab_size
        kept = model(input_ids=ids, past_key_values=cache, use_cache=True).past_key_values
        layers = [
            Geometry(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3])
            for layer in kept.layers
            if layer.keys.shape[2] == layer.values.shape[2] == 3
        ]
    except Exception as error:  # whatever the model's own code raises on a cache that does not suit it
        raise UnsupportedArchitecture(
            f"{name}: it keeps other state than keys and values by layer, which this interface cannot hold "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
    expected = model.config.get_text_config(decoder=True).num_hidden_layers
    if len(layers) != expected:
        raise UnsupportedArchitecture(
            f"{name}: {len(layers)} of its {expected} layers keep keys and values of each token (the others have "
            "state-space, linear or shared attention), which this interface cannot hold"
        )
    return layers


def _takes_positions(model: nn.Module) -> bool:
    return "position_ids" in inspect.signature(model.forward).parameters


class _GrowingStep(nn.Module):
    """The model with its cache as plain inputs and outputs."""

    def __init__(self, model: Any, *, positions: bool, mask: bool) -> None:
        super().__init__()
        self.model = model
        self.positions = positions
        self.mask = mask
        self.derives_positions = not positions and mask and _takes_positions(model)

    def forward(
        self,
        input_ids: torch.Tensor,  # [batch, sequence]
        past: list[tuple[torch.Tensor, torch.Tensor]],  # [batch, heads, past, head_dim] each
        attention_mask: torch.Tensor | None = None,  # [batch, past + sequence]
        position_ids: torch.Tensor | None = None,  # [batch, sequence]
    ) -> dict[str, torch.Tensor]:
        more = {} if position_ids is None else {"position_ids": position_ids}
        if self.derives_positions and attention_mask is not None:
            # As transformers' generate does: padding does not count.
            counted = (attention_mask.cumsum(1) - 1).clamp(min=0)
            more["position_ids"] = counted[:, past[0][0].shape[2] :]
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=DynamicCache(ddp_cache_data=past),
            use_cache=True,
            **more,
        )
        flat = {"logits": out.logits}
        for index, layer in enumerate(out.past_key_values.layers):
            flat[f"{index}.key"], flat[f"{index}.value"] = layer.keys, layer.values
        return flat


def _trace(step: _GrowingStep, layers: Sequence[Geometry], names: IoNames, opset: int) -> ir.Model:
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    exporter: Any = OnnxExporter  # it takes any module, and says that it takes transformers' own only
    model_type = step.model.config.model_type
    inputs, dynamic = _example(step, layers)
    logging: Any = transformers_logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with quiet(), contextlib.redirect_stdout(io.StringIO()):  # torch's exporter prints its progress
            traced, _ = exporter().export_program(step, inputs, OnnxConfig(dynamic_shapes=dynamic, opset_version=opset))
    except Exception as error:
        cause = error.__cause__ or error
        raise ExportError(
            f"{model_type}: torch could not turn it into ONNX ({type(cause).__name__}: {first_line(cause)})"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    model: ir.Model = traced
    name_interface(model.graph, names, len(layers), positions=step.positions, mask=step.mask, model_type=model_type)
    widen_bfloat16(model.graph)
    clean_up(model)
    return model


def _example(step: _GrowingStep, layers: Sequence[Geometry]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A step to trace with, and which of its axes vary.

    Sizes differ from each other and from 0 and 1, so that no two axes are taken for one and none is baked.
    """
    rows, tokens, held = 3, 4, 5
    auto = torch.export.Dim.AUTO
    inputs: dict[str, Any] = {
        "input_ids": torch.ones(rows, tokens, dtype=torch.int64),
        "past": [
            (torch.zeros(rows, g.heads, held, g.key_dim), torch.zeros(rows, g.heads, held, g.value_dim)) for g in layers
        ],
    }
    cache = {0: auto, 2: auto}
    dynamic: dict[str, Any] = {"input_ids": {0: auto, 1: auto}, "past": [(cache, cache) for _ in layers]}
    if step.mask:
        inputs["attention_mask"] = torch.ones(rows, held + tokens, dtype=torch.int64)
        dynamic["attention_mask"] = {0: auto, 1: auto}
    if step.positions:
        inputs["position_ids"] = torch.arange(held, held + tokens).repeat(rows, 1)
        dynamic["position_ids"] = {0: auto, 1: auto}
    return inputs, dynamic


def _save(model: ir.Model, file: Path, external: bool | None) -> None:
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    beside = external if external is not None else size > _INLINE
    try:
        ir.save(model, file, external_data=data_beside(file).name if beside else None)
    except OSError as error:
        raise ExportError(f"{file.name} cannot be written: {error.strerror or error}") from error
