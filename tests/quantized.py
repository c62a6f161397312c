"""Quantized decoders of the tests' own, made from exported ones by replacing MatMuls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from transformers import AutoModelForCausalLM

from bento_kv.contract.quantization import BlockWeights
from bento_kv.export.quantize import quantize_blocks, quantize_columns
from bento_kv.proof.parity import TorchReference
from tests.damage import change_graph

Floats = NDArray[np.float32]
Quantizer = Callable[[Floats], BlockWeights]


def blocks(bits: int = 4, block_size: int = 32, *, symmetric: bool = True) -> Quantizer:
    """Weights `[N, K]` quantized as an export would."""
    return lambda weight: quantize_blocks(
        weight, bits=bits, block_size=block_size, symmetric=symmetric, method="search"
    )


def coarse(bits: int, block_size: int = 32) -> Quantizer:
    """Stored with 4 bits, and rounded to fewer."""

    def quantize(weight: Floats) -> BlockWeights:
        steps = 2 ** (bits - 1)
        pieces = weight.reshape(-1, block_size)
        scale = np.abs(pieces).max(axis=1, keepdims=True) / steps
        rounded = (np.clip(np.rint(pieces / scale), -steps, steps - 1) * scale).reshape(weight.shape)
        return quantize_blocks(rounded.astype(np.float32), bits=4, block_size=block_size)

    return quantize


def quantize_decoder(
    directory: Path, source: Path, quantizer: Quantizer, *, accuracy_level: int = 4, embedding: bool = False
) -> list[str]:
    """Make every MatMul of an fp32 decoder a MatMulNBits, in place.

    Args:
        directory: of the decoder.
        source: what it was exported from.
        quantizer: of weights `[N, K]`.
        accuracy_level: of the operators.
        embedding: read the embedding, too, from the quantized head that it is tied to.

    Returns:
        The names of the weights, in the order of the graph.
    """
    parameters = _parameters(source)
    weights: dict[str, Sequence[str]] = {}

    def change(model: onnx.ModelProto) -> None:
        _turn_heads(model, directory)
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type != "MatMul" or node.input[1] not in tensors:
                continue
            name = node.input[1]
            stored: Floats = numpy_helper.to_array(tensors[name], base_dir=str(directory)).T
            weights[name] = _parts(stored, parameters)
            quantized = quantizer(stored)
            arrays = {f"{name}.q{quantized.bits}": quantized.packed, f"{name}.scales": quantized.scales}
            if quantized.zero_points is not None:
                arrays[f"{name}.zero_points"] = quantized.zero_points
            replaced = helper.make_node(
                "MatMulNBits",
                [node.input[0], *arrays],
                list(node.output),
                name=node.name,
                domain="com.microsoft",
                K=quantized.in_features,
                N=quantized.out_features,
                bits=quantized.bits,
                block_size=quantized.block_size,
                accuracy_level=accuracy_level,
            )
            node.CopyFrom(replaced)
            model.graph.initializer.remove(tensors[name])
            model.graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in arrays.items())
        if embedding:
            _share_head(model)

    bits = quantizer(np.ones((1, 256), np.float32)).bits
    change_graph(directory, change, manifest={})
    # The names are known by now, and the manifest is brought in line once more.
    change_graph(directory, lambda _: None, manifest={"precision": f"int{bits}", "weights": weights})
    return list(weights)


def to_integers(directory: Path, source: Path, *, embedding: bool = False) -> list[str]:
    """Make every MatMul of an fp32 decoder one of integers: weights of 8 bits by output, activations of 8 bits by token.

    Returns:
        The names of the weights, in the order of the graph.
    """
    weights: dict[str, Sequence[str]] = {}

    def change(model: onnx.ModelProto) -> None:
        _turn_heads(model, directory)
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        shared = {
            "int.zero": np.array(128, np.uint8),
            "int.one": np.float32(1),
            "int.least": np.float32(1e-9),
            "int.inverse": np.float32(1 / 127),
            "int.flat": np.array([-1]),
            "int.last": np.array([-1]),
        }
        model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in shared.items())
        nodes = []
        for node in model.graph.node:
            name = node.input[1] if node.op_type == "MatMul" else ""
            if name not in tensors:
                nodes.append(node)
                continue
            stored: Floats = numpy_helper.to_array(tensors[name], base_dir=str(directory)).T
            weights[name] = _parts(stored, _parameters(source))
            quantized = quantize_columns(stored)
            arrays = {
                f"{name}.q8": np.ascontiguousarray(quantized.values.T),
                f"{name}.column_scales": quantized.scales,
            }
            nodes.extend(_integer_product(node.input[0], name, node.output[0]))
            model.graph.initializer.remove(tensors[name])
            model.graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in arrays.items())
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        if embedding:
            _look_up_integers(model, name)

    change_graph(directory, change, manifest={})
    change_graph(directory, lambda _: None, manifest={"precision": "int8", "weights": weights})
    return list(weights)


def _integer_product(x: str, name: str, output: str) -> list[onnx.NodeProto]:
    """The nodes of `x @ weight`, x being [1, tokens, K], or [tokens, K] before the logits."""
    ms = "com.microsoft"
    chain: tuple[tuple[str, str, list[str], str, dict[str, object]], ...] = (
        ("", "Abs", [x], "abs", {}),
        ("", "ReduceMax", ["abs", "int.last"], "largest", {"keepdims": 1}),
        ("", "Max", ["largest", "int.least"], "positive", {}),
        ("", "Mul", ["positive", "int.inverse"], "steps", {}),  # [..., tokens, 1]
        ("", "Reshape", ["steps", "int.flat"], "step", {}),
        ("", "Shape", ["step"], "tokens", {}),
        ("", "Expand", ["int.zero", "tokens"], "zeros", {}),
        ("", "QuantizeLinear", [x, "step", "zeros"], "rounded", {"axis": 0 if output == "logits" else 1}),
        ("", "Transpose", [f"{name}.q8"], "turned", {"perm": [1, 0]}),
        (
            ms,
            "MatMulIntegerToFloat",
            ["rounded", "turned", "int.one", f"{name}.column_scales", "int.zero"],
            "product",
            {},
        ),
        ("", "Mul", ["product", "steps"], output, {}),
    )
    own = {result for *_, result, _ in chain[:-1]}

    def named(value: str) -> str:
        return f"{name}/{value}" if value in own else value

    return [
        helper.make_node(operator, [named(value) for value in inputs], [named(result)], domain=domain, **attributes)
        for domain, operator, inputs, result, attributes in chain
    ]


def _look_up_integers(model: onnx.ModelProto, head: str) -> None:
    """The embedding's rows are taken from the head's integers, and scaled."""
    at, gather = next(
        (i, n) for i, n in enumerate(model.graph.node) if n.op_type == "Gather" and "embed" in n.output[0]
    )
    ids = gather.input[1]
    nodes = [
        helper.make_node("Gather", [f"{head}.q8", ids], ["embed/rows"], axis=0),
        helper.make_node("Cast", ["embed/rows"], ["embed/floats"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Gather", [f"{head}.column_scales", ids], ["embed/scales"], axis=0),
        helper.make_node("Unsqueeze", ["embed/scales", "int.last"], ["embed/wide"]),
        helper.make_node("Mul", ["embed/floats", "embed/wide"], list(gather.output)),
    ]
    rest = [*model.graph.node[:at], *nodes, *model.graph.node[at + 1 :]]
    del model.graph.node[:]
    model.graph.node.extend(rest)


def _turn_heads(model: onnx.ModelProto, directory: Path) -> None:
    """A head that is tied to the embedding reads it transposed; give it a matrix of its own, as other weights have."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "Transpose" and node.input[0] in tensors]:
        array: Floats = numpy_helper.to_array(tensors[node.input[0]], base_dir=str(directory))
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array.T), node.output[0]))
        model.graph.node.remove(node)


def _share_head(model: onnx.ModelProto) -> None:
    """The embedding's rows are taken from the head's quantized tensors, by an operator that wants them flat."""
    head = next(node for node in reversed(model.graph.node) if node.op_type == "MatMulNBits")
    gather = next(node for node in model.graph.node if node.op_type == "Gather" and "embed" in node.output[0])
    settings = {a.name: a.i for a in head.attribute}
    packed = next(tensor for tensor in model.graph.initializer if tensor.name == head.input[1])
    rows = f"{head.input[2].removesuffix('.scales')}.rows"
    model.graph.initializer.append(
        numpy_helper.from_array(numpy_helper.to_array(packed).reshape(settings["N"], -1), rows)
    )
    replaced = helper.make_node(
        "GatherBlockQuantized",
        [rows, gather.input[1], *head.input[2:]],
        list(gather.output),
        domain="com.microsoft",
        bits=settings["bits"],
        block_size=settings["block_size"],
        gather_axis=0,
        quantize_axis=1,
    )
    gather.CopyFrom(replaced)


def change_tensors(directory: Path, change: Callable[[dict[str, NDArray[np.generic]]], None]) -> None:
    """Change arrays of a quantized decoder, by name, in place or by putting others there."""

    def work(model: onnx.ModelProto) -> None:
        inside = [
            tensor
            for tensor in model.graph.initializer
            if tensor.name.rpartition(".")[2] in ("q4", "q8", "scales", "column_scales")
        ]
        arrays = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in inside}
        change(arrays)
        for tensor in inside:
            tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))

    change_graph(directory, work, manifest={})


@cache
def _parameters(source: Path) -> dict[str, Floats]:
    """Every matrix of a model, as `[N, K]`."""
    reference = TorchReference(str(source), None)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    return {name: reference.weight(name) for name, parameter in model.named_parameters() if parameter.ndim == 2}


def _parts(stored: Floats, parameters: dict[str, Floats]) -> list[str]:
    """The parameters, or their outputs as `name[first:last]`, that stand in a weight `[N, K]` one after the other."""
    owners = {row.tobytes(): (name, at) for name, parameter in parameters.items() for at, row in enumerate(parameter)}
    found: list[tuple[str, int, int]] = []
    for row in stored:
        name, at = owners[np.ascontiguousarray(row).tobytes()]
        if found and found[-1][0] == name and found[-1][2] == at:
            found[-1] = (name, found[-1][1], at + 1)
        else:
            found.append((name, at, at + 1))
    return [name if last - first == len(parameters[name]) else f"{name}[{first}:{last}]" for name, first, last in found]
