"""Decoders that are right, each in its own way: nothing may be said against them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import version_converter

from tests.mutants.cache_faults import positions_count_padding
from tests.mutants.decoders import LAYOUTS, Decoders
from tests.mutants.surgery import constant, node, returned, rewire, size, tidy, without_input

Change = Callable[[onnx.ModelProto], onnx.ModelProto]


@dataclass(frozen=True)
class Healthy:
    """A decoder, and what is unusual about it."""

    base: str
    layout: str = "common"
    trait: str = ""
    change: Change | None = None

    @property
    def name(self) -> str:
        return ", ".join(part for part in (self.base, self.layout, self.trait) if part)

    def write(self, decoders: Decoders, folder: Path) -> None:
        model = decoders.model(self.base)
        LAYOUTS[self.layout](self.change(model) if self.change else model, folder)


def last_logits_only(model: onnx.ModelProto) -> onnx.ModelProto:
    """As graphs for serving are written: the last token's logits are all that a loop needs."""
    begin, end, axis = constant(model, [-1]), constant(model, [1 << 40]), constant(model, [1])
    returned(model, "logits", lambda logits: node(model, "Slice", logits, begin, end, axis))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    return tidy(model)


def without_mask(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rows cannot be padded; all of past and new tokens is seen."""

    def ones(_: str) -> str:
        total = node(model, "Add", size(model, "input_ids", 1), size(model, "past_key_values.0.key", 2))
        shape = node(model, "Concat", size(model, "input_ids", 0), total, axis=0)
        return node(model, "Expand", constant(model, 1), shape)

    rewire(model, "attention_mask", ones)
    without_input(model, "attention_mask")
    return tidy(model)


def without_positions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Positions are counted behind the past, in the graph."""
    positions_count_padding(model, read=False)
    without_input(model, "position_ids")
    return tidy(model)


def without_mask_and_positions(model: onnx.ModelProto) -> onnx.ModelProto:
    return without_positions(without_mask(model))


def opset_17(model: onnx.ModelProto) -> onnx.ModelProto:
    converted: onnx.ModelProto = version_converter.convert_version(model, 17)
    return converted


def opset_21(model: onnx.ModelProto) -> onnx.ModelProto:
    converted: onnx.ModelProto = version_converter.convert_version(model, 21)
    return converted


def quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights and activations in 8 bits, a scale a tensor."""
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder) / "whole.onnx", Path(folder) / "small.onnx"
        onnx.save(model, whole)
        quantize_dynamic(whole, small)
        result: onnx.ModelProto = onnx.load(small)
    return result


def quantized_to_4_bits(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(model, block_size=32, is_symmetric=True)
    quantizer.process()
    result: onnx.ModelProto = quantizer.model.model
    return result


def order_reversed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Inputs and outputs in the opposite order: nothing says that logits come first."""
    for values in (model.graph.input, model.graph.output):
        reverse = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in reversed(values)]
        del values[:]
        values.extend(reverse)
    return model


DECODERS = (
    Healthy("llama"),
    Healthy("gpt2"),
    Healthy("qwen2"),
    Healthy("bloom"),
    Healthy("gemma"),
    Healthy("opt"),
    Healthy("gpt_neox"),
    Healthy("falcon"),
    Healthy("mistral", trait="sliding window"),
    Healthy("genai", "genai"),
    Healthy("packed", "packed"),
    Healthy("gpt2", "stacked"),
    Healthy("bloom", "transposed keys"),
    Healthy("qwen2", "time-major"),
    Healthy("llama", "two files"),
    Healthy("mistral", "two files", "sliding window"),
    Healthy("gpt2", "merged"),
    Healthy("gemma", "merged"),
    Healthy("llama", "external data"),
    Healthy("llama", "fp16"),
    Healthy("gpt2", "fp16"),
    Healthy("opt", "int32 ids"),
    Healthy("falcon", "other names"),
    Healthy("llama", trait="opset 21", change=opset_21),
    Healthy("bloom", trait="opset 17", change=opset_17),
    Healthy("bloom", "transposed keys", "int8 weights and activations", quantized),
    Healthy("llama", trait="int4 weights", change=quantized_to_4_bits),
    Healthy("gpt2", trait="last logits only", change=last_logits_only),
    Healthy("llama", trait="no mask", change=without_mask),
    Healthy("llama", trait="no positions", change=without_positions),
    Healthy("gpt2", trait="no positions", change=without_positions),
    Healthy("qwen2", trait="neither mask nor positions", change=without_mask_and_positions),
    Healthy("llama", trait="outputs in reverse order", change=order_reversed),
)
