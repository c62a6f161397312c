"""The float twin: a quantized decoder with its quantization taken out, so that all the rest can be proven to rounding.

A quantized graph cannot be compared with the reference closely enough to tell a wrong scale of the attention from rounded
weights. So the proof has two halves. The twin is made from the very file that serves: every quantized MatMul becomes a
float one with the reference's weights, and nothing else is touched. What the twin computes must then be the reference's
results to fp32's rounding: positions, masks, scales, the order of the layers, the cache. And the quantized weights, made
floats again, must be close to those that took their place (`weights.py`), which is all that the twin leaves out.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bento_kv.contract.checks import holds
from bento_kv.contract.files import sha256
from bento_kv.contract.graph_io import TensorSpec
from bento_kv.contract.manifest import Manifest
from bento_kv.contract.operators import (
    GROUP_QUERY_ATTENTION,
    K_QUANT_TYPE,
    KV_CACHE_BIT_WIDTH,
    V_QUANT_TYPE,
    AttentionInput,
)
from bento_kv.contract.quantization import REDUCED_RANGE, BlockWeights, ColumnWeights
from bento_kv.contract.reference import WeightReference
from bento_kv.contract.verification import Check
from bento_kv.errors import VerificationError
from bento_kv.onnx_file import nested_graphs
from bento_kv.proof.floats import TWIN_DATA, FloatWeights, NotReducible
from bento_kv.proof.integers import Dataflow, Integers
from bento_kv.proof.structure import fingerprint
from bento_kv.proof.weights import WeightErrors

# Operators on quantized tensors; none may be left in a twin.
QUANTIZED = {
    "BitLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "GatherBlockQuantized",
    "MatMulBnb4",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "QAttention",
    "QLinearMatMul",
    "QMoE",
    "QuantizeLinear",
}
# What makes GroupQueryAttention keep an int8 cache.
_CACHE_ATTRIBUTES = {K_QUANT_TYPE, V_QUANT_TYPE, KV_CACHE_BIT_WIDTH}
_CACHE_SCALES = (AttentionInput.K_SCALE, AttentionInput.V_SCALE)
# Of quantized tensors, no other being of so few bits.
_NARROW = {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4}


def make_twin(directory: Path, manifest: Manifest, reference: WeightReference, target: Path) -> list[Check]:
    """Write the twin of a quantized decoder, and compare the quantized weights with the floats that replace them.

    Args:
        directory: of the decoder.
        manifest: its manifest; `weights` says what the quantized weights were made from.
        reference: has the float weights.
        target: an empty directory, for a decoder directory of fp32 with as many graphs; room for all weights in float.

    Returns:
        `float-twin` first: whether there is a twin, and the graphs, where there are two, have the same. Then, if so,
        how far the quantized weights are from the reference's.

    Raises:
        VerificationError: the twin cannot be written.
    """
    errors = WeightErrors()
    try:
        with (target / TWIN_DATA).open("wb") as data:
            floats = FloatWeights(manifest.weights, manifest.rotations, reference, data)
            prints = [
                _Graph(directory, name, manifest, floats, errors).write(target / name) for name in manifest.graphs
            ]
    except NotReducible as error:
        return [_twin_check([str(error)], errors)]
    except OSError as error:
        raise VerificationError(
            f"the float twin cannot be written to {target}: {error.strerror}; it takes as much room as the weights in "
            "fp32, and the variable TMPDIR says where"
        ) from error
    unused = sorted(set(manifest.weights) - floats.used)
    faults = [f"the manifest says what {name} was made from, and no graph has it" for name in unused]
    if len(set(prints)) > 1:
        faults.append(f"{' and '.join(manifest.graphs)} compute different things, their quantization apart")
    twin = manifest.model_copy(
        update={
            "precision": "fp32",
            "kv_cache": "fp32",
            "weights": {},
            "rotations": {},
            "inputs": tuple(_with_float_cache(spec) for spec in manifest.inputs),
            "outputs": tuple(_with_float_cache(spec) for spec in manifest.outputs),
            "files": {name: sha256(target / name) for name in manifest.graphs},
        }
    )
    twin.write(target)
    return [_twin_check(faults, errors), *errors.checks()]


def _with_float_cache(spec: TensorSpec) -> TensorSpec:
    return spec.model_copy(update={"dtype": "float"}) if spec.dtype == "int8" else spec


def _twin_check(faults: list[str], errors: WeightErrors) -> Check:
    return holds(
        "float-twin",
        faults,
        f"places where the graph without its quantization ({errors.count} weights) is not known",
    )


class _Graph:
    """One graph of the decoder, on its way to being a twin."""

    def __init__(
        self, directory: Path, name: str, manifest: Manifest, floats: FloatWeights, errors: WeightErrors
    ) -> None:
        self._directory = directory
        self._reduced = manifest.reduce_range
        self._name = name
        self._model = onnx.load(directory / name, format="protobuf", load_external_data=False)
        self._tensors = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self._floats = floats
        self._errors = errors
        self._known: dict[str, str] = {}  # what stands behind the twin's initializers
        self._added: list[TensorProto] = []

    def write(self, file: Path) -> str:
        """Write the twin; its fingerprint."""
        graph = self._model.graph
        self._integers = self._found_integers()
        for each in nested_graphs(graph):
            for value in (*each.input, *each.output):
                if value.type.tensor_type.elem_type == TensorProto.INT8:
                    value.type.tensor_type.elem_type = TensorProto.FLOAT
            for node in each.node:
                if node.op_type == GROUP_QUERY_ATTENTION:
                    _float_cache(node)
            del each.value_info[:]
        nodes = _used([new for node in graph.node for new in self._restored(node)], {v.name for v in graph.output})
        del graph.node[:]
        graph.node.extend(nodes)
        left = sorted({n.op_type for g in nested_graphs(graph) for n in g.node} & QUANTIZED)
        if left:
            raise NotReducible(f"{self._name} has operators on quantized tensors that are not known here: {left}")
        read = {name for g in nested_graphs(graph) for node in g.node for name in node.input}
        kept = [self._kept(tensor) for tensor in graph.initializer if tensor.name in read]
        integers = sorted(tensor.name for tensor in kept if tensor.data_type in _NARROW and math.prod(tensor.dims) > 1)
        if integers:
            raise NotReducible(f"{self._name} reads quantized tensors otherwise than is known here: {integers[0]}")
        del graph.initializer[:]
        graph.initializer.extend([*kept, *self._added])
        onnx.save(self._model, file)
        return fingerprint(graph, self._known)

    def _kept(self, tensor: TensorProto) -> TensorProto:
        """An initializer that is no quantized weight, in the twin's own file if it was in one."""
        array = self._array(tensor.name)
        content = f"{array.dtype}{array.shape}" + hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
        self._known[tensor.name] = content
        if tensor.data_location != TensorProto.EXTERNAL:
            return tensor
        stored = TensorProto()
        stored.CopyFrom(self._floats.store(content, array))
        stored.name = tensor.name
        return stored

    def _array(self, name: str) -> NDArray[np.generic]:
        if name not in self._tensors:
            raise NotReducible(f"{self._name} computes {name}, which should be a stored tensor")
        array: NDArray[np.generic] = numpy_helper.to_array(self._tensors[name], base_dir=str(self._directory))
        return array

    def _restored(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        if node.op_type == "MatMulNBits":
            return self._float_matmul(node)
        if node.output and node.output[0] in self._integers:
            return [self._float_integers(node, self._integers[node.output[0]])]
        return [self._float_gather(node)] if node.op_type == "GatherBlockQuantized" else [node]

    def _float_matmul(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """MatMul, and Add for a bias, instead of MatMulNBits."""
        x, packed, scales, zero_points, groups, bias = [*node.input, "", "", ""][:6]
        settings = {a.name: a.i for a in node.attribute}
        if groups:
            raise NotReducible(
                f"{self._name}: {node.name} reads {groups}, an order of its inputs that is not known here"
            )
        name, floats = self._floats_of(node, packed, scales, zero_points, settings["bits"], settings["block_size"])
        if floats.shape != (settings["N"], settings["K"]):
            raise NotReducible(
                f"{self._name}: {name} is {list(floats.shape)} in the reference, not N and K of its node"
            )
        output = f"{node.output[0]}.without_bias" if bias else node.output[0]
        nodes = [helper.make_node("MatMul", [x, self._twin(f"{name}.columns", floats.T)], [output], name=node.name)]
        if bias:
            nodes.append(helper.make_node("Add", [output, bias], [node.output[0]]))
        return nodes

    def _found_integers(self) -> dict[str, Integers]:
        """Products and lookups of integers, by the name of the float value that they end in."""
        flow = Dataflow(self._model.graph.node)
        found = {}
        for node in self._model.graph.node:
            if node.op_type == "MatMulIntegerToFloat":
                integers = flow.product(node)
            elif node.op_type == "Gather" and node.input[0] in self._tensors and self._is_int8(node.input[0]):
                integers = flow.lookup(node)
            else:
                continue
            if integers is None or (integers.factor and not (self._array(integers.factor) == 1).all()):
                raise NotReducible(f"{self._name}: what {node.name or node.output[0]} computes is not known here")
            found[integers.output] = integers
        return found

    def _is_int8(self, name: str) -> bool:
        return bool(self._tensors[name].data_type == TensorProto.INT8)

    def _float_integers(self, node: onnx.NodeProto, integers: Integers) -> onnx.NodeProto:
        """MatMul or Gather instead of the last node of a product or a lookup."""
        name = integers.weight.removesuffix(".q8")
        if integers.weight != f"{name}.q8" or integers.scales != f"{name}.column_scales":
            raise NotReducible(f"{self._name}: {integers.weight} times {integers.scales} is not one weight")
        values, scales = self._array(integers.weight), self._array(integers.scales)
        floats = self._floats.floats(name)
        if values.dtype != np.int8 or values.shape != floats.shape or scales.shape != floats.shape[:1]:
            raise NotReducible(
                f"{self._name}: {name} is {values.dtype} {list(values.shape)}, the reference's {list(floats.shape)}"
            )
        if self._reduced and (values.min() < -REDUCED_RANGE or values.max() > REDUCED_RANGE):
            raise NotReducible(
                f"{self._name}: values of {name} are beyond {REDUCED_RANGE}, though the manifest says that their range is "
                "reduced: their products may overflow"
            )
        quantized = ColumnWeights(values.astype(np.int8, copy=False).T, scales.astype(np.float32, copy=False))
        self._errors.see(name, floats, quantized)
        if integers.factor:
            columns = self._twin(f"{name}.columns", floats.T)
            return helper.make_node("MatMul", [integers.read, columns], list(node.output), name=node.name)
        rows = self._twin(f"{name}.rows", floats)
        return helper.make_node("Gather", [rows, integers.read], list(node.output), name=node.name, axis=0)

    def _float_gather(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """Gather instead of GatherBlockQuantized: an embedding, which a head may share."""
        packed, indices, scales, zero_points = [*node.input, ""][:4]
        settings = {"bits": 4, "block_size": 128, "gather_axis": 0, "quantize_axis": 1}
        settings |= {a.name: a.i for a in node.attribute}
        if settings["gather_axis"] != 0 or settings["quantize_axis"] not in (1, -1):
            raise NotReducible(f"{self._name}: {node.name} gathers columns, or shares scales along rows")
        name, floats = self._floats_of(node, packed, scales, zero_points, settings["bits"], settings["block_size"])
        rows = self._twin(f"{name}.rows", floats)
        return helper.make_node("Gather", [rows, indices], list(node.output), name=node.name, axis=0)

    def _floats_of(
        self, node: onnx.NodeProto, packed: str, scales: str, zero_points: str, bits: int, size: int
    ) -> tuple[str, NDArray[np.float32]]:
        """The weight that a node reads, its name and the reference's floats `[N, K]`, the two having been compared."""
        name, dot, kind = scales.rpartition(".")
        known = packed in (f"{name}.q{bits}", f"{name}.rows") and zero_points in ("", f"{name}.zero_points")
        if not dot or kind != "scales" or not known:
            read = ", ".join(filter(None, (packed, scales, zero_points)))
            raise NotReducible(f"{self._name}: {node.op_type} {node.name} reads {read}, which is not one weight")
        floats = self._floats.floats(name)
        rows, columns = floats.shape
        blocks = -(-columns // size)
        try:
            quantized = BlockWeights(
                packed=self._array(packed).reshape(rows, blocks, size * bits // 8).astype(np.uint8, copy=False),
                scales=self._array(scales).reshape(rows, blocks).astype(np.float32, copy=False),
                zero_points=self._array(zero_points).reshape(rows, -1).astype(np.uint8) if zero_points else None,
                bits=bits,
                block_size=size,
                in_features=columns,
            )
        except ValueError as error:
            raise NotReducible(f"{self._name}: {name} is not {rows} x {columns}, the reference's: {error}") from error
        self._errors.see(name, floats, quantized)
        return name, floats

    def _twin(self, name: str, array: NDArray[np.float32]) -> str:
        """The name of an initializer of the twin, which is stored unless it is."""
        twin = f"twin.{name}"
        if twin not in self._known:
            self._known[twin] = twin
            self._added.append(self._floats.store(twin, array))
        return twin


def _float_cache(node: onnx.NodeProto) -> None:
    """Let the attention keep a float cache, whatever its own is."""
    kept = [a for a in node.attribute if a.name not in _CACHE_ATTRIBUTES]
    if len(kept) < len(node.attribute):
        del node.attribute[:]
        node.attribute.extend(kept)
        for index in _CACHE_SCALES:
            node.input[index] = ""


def _used(nodes: Sequence[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    """Those that what is wanted depends on, in the same order."""
    needed = set(wanted)
    kept = []
    for node in reversed(nodes):
        if needed & set(node.output):
            kept.append(node)
            needed.update(node.input)
            needed.update(name for a in node.attribute for g in nested_graphs(a.g) for n in g.node for name in n.input)
    return kept[::-1]
