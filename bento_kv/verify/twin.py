"""The float twin: a quantized decoder with its quantization taken out, so that all the rest can be proven to rounding.

A quantized graph cannot be compared with the reference closely enough to tell a wrong scale of the attention from rounded
weights. So the proof has two halves. The twin is made from the very file that serves: every quantized MatMul becomes a
float one with the reference's weights, and nothing else is touched. What the twin computes must then be the reference's
results to fp32's rounding: positions, masks, scales, the order of the layers, the cache. And the quantized weights, made
floats again, must be close to those that took their place (`weights.py`), which is all that the twin leaves out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bento_kv.errors import VerificationError
from bento_kv.manifest import Check, Manifest, sha256
from bento_kv.onnx_file import nested_graphs
from bento_kv.quantization import BlockWeights, ColumnWeights
from bento_kv.verify.checks import holds
from bento_kv.verify.integers import Dataflow, IntegerProduct
from bento_kv.verify.reference import WeightReference
from bento_kv.verify.structure import fingerprint
from bento_kv.verify.weights import WeightErrors, in_order_of

TWIN_DATA = "twin.onnx.data"
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
_ALIGNMENT = 4096
_AT_ONCE = 1 << 22  # elements


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
            floats = _Floats(manifest.weights, reference, data)
            prints = [_Graph(directory, name, floats, errors).write(target / name) for name in manifest.graphs]
    except _NotReducible as error:
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
        update={"precision": "fp32", "weights": {}, "files": {name: sha256(target / name) for name in manifest.graphs}}
    )
    twin.write(target)
    return [_twin_check(faults, errors), *errors.checks()]


def _twin_check(faults: list[str], errors: WeightErrors) -> Check:
    return holds(
        "float-twin",
        faults,
        f"places where the graph without its quantization ({errors.count} weights) is not known",
    )


class _NotReducible(Exception):
    """The graph has something that the twin cannot be made of; the message says what."""


class _Floats:
    """The reference's weights as the twin's initializers, in one file for all graphs; each is written once."""

    def __init__(self, sources: Mapping[str, Sequence[str]], reference: WeightReference, data: IO[bytes]) -> None:
        self._sources = sources
        self._reference = reference
        self._data = data
        self._stored: dict[str, TensorProto] = {}
        self.used: set[str] = set()

    def floats(self, name: str) -> NDArray[np.float32]:
        """What a quantized weight was made from: `[N, K]`."""
        if name not in self._sources:
            raise _NotReducible(f"the manifest does not say what {name} was made from")
        self.used.add(name)
        try:
            parts = [self._reference.weight(source) for source in self._sources[name]]
        except VerificationError as error:
            raise _NotReducible(str(error)) from error
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def store(self, name: str, array: NDArray[np.generic]) -> TensorProto:
        """An initializer of that name with the array behind it; the same one if there is one already."""
        if name in self._stored:
            return self._stored[name]
        self._data.write(bytes(-self._data.tell() % _ALIGNMENT))
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = TensorProto(name=name, data_type=kind, dims=array.shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", TWIN_DATA), ("offset", self._data.tell()), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        rows = np.atleast_1d(array)
        step = max(1, _AT_ONCE // max(1, rows[:1].size))
        for first in range(0, len(rows), step):  # a large one is not copied as a whole, transposed as it may be
            self._data.write(rows[first : first + step].tobytes())
        self._stored[name] = tensor
        return tensor


class _Graph:
    """One graph of the decoder, on its way to being a twin."""

    def __init__(self, directory: Path, name: str, floats: _Floats, errors: WeightErrors) -> None:
        self._directory = directory
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
        self._products = self._integer_products()
        nodes = _used([new for node in graph.node for new in self._restored(node)], {v.name for v in graph.output})
        del graph.node[:], graph.value_info[:]
        graph.node.extend(nodes)
        left = sorted({n.op_type for g in nested_graphs(graph) for n in g.node} & QUANTIZED)
        if left:
            raise _NotReducible(f"{self._name} has operators on quantized tensors that are not known here: {left}")
        read = {name for g in nested_graphs(graph) for node in g.node for name in node.input}
        kept = [self._kept(tensor) for tensor in graph.initializer if tensor.name in read]
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
            raise _NotReducible(f"{self._name} computes {name}, which should be a stored tensor")
        array: NDArray[np.generic] = numpy_helper.to_array(self._tensors[name], base_dir=str(self._directory))
        return array

    def _restored(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        if node.op_type == "MatMulNBits":
            return self._float_matmul(node)
        if node.output and node.output[0] in self._products:
            return [self._float_product(node, self._products[node.output[0]])]
        return [self._float_gather(node)] if node.op_type == "GatherBlockQuantized" else [node]

    def _float_matmul(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """MatMul, and Add for a bias, instead of MatMulNBits."""
        x, packed, scales, zero_points, groups, bias = [*node.input, "", "", ""][:6]
        settings = {a.name: a.i for a in node.attribute}
        if groups:
            raise _NotReducible(
                f"{self._name}: {node.name} reads {groups}, an order of its inputs that is not known here"
            )
        name, floats = self._floats_of(node, packed, scales, zero_points, settings["bits"], settings["block_size"])
        if floats.shape != (settings["N"], settings["K"]):
            raise _NotReducible(
                f"{self._name}: {name} is {list(floats.shape)} in the reference, not N and K of its node"
            )
        output = f"{node.output[0]}.without_bias" if bias else node.output[0]
        nodes = [helper.make_node("MatMul", [x, self._twin(f"{name}.columns", floats.T)], [output], name=node.name)]
        if bias:
            nodes.append(helper.make_node("Add", [output, bias], [node.output[0]]))
        return nodes

    def _integer_products(self) -> dict[str, IntegerProduct]:
        """By the name of the float product."""
        flow = Dataflow(self._model.graph.node)
        integers = [node for node in self._model.graph.node if node.op_type == "MatMulInteger"]
        found = [flow.product_of(node, self._tensors) for node in integers]
        for node, product in zip(integers, found, strict=True):
            if product is None:
                raise _NotReducible(f"{self._name}: what {node.name or node.output[0]} computes is not known here")
        return {product.output: product for product in found if product is not None}

    def _float_product(self, node: onnx.NodeProto, product: IntegerProduct) -> onnx.NodeProto:
        """MatMul instead of the last node of what rounds activations and multiplies integers."""
        name, dot, kind = product.weight.rpartition(".")
        if not dot or kind != "q8c" or not product.scales.startswith(f"{name}.scales"):
            raise _NotReducible(f"{self._name}: {product.weight} times {product.scales} is not one weight")
        values = self._array(product.weight)
        floats = self._floats.floats(name)
        if values.dtype != np.int8 or values.shape != floats.T.shape:
            raise _NotReducible(
                f"{self._name}: {name} is {values.dtype} {list(values.shape)}, the reference's {list(floats.T.shape)}"
            )
        scales = np.broadcast_to(self._array(product.scales).astype(np.float32).reshape(-1), len(floats))
        quantized = ColumnWeights(values.astype(np.int8, copy=False), scales)
        floats = in_order_of(quantized, floats)
        self._errors.see(name, floats, quantized)
        columns = self._twin(f"{name}.columns", floats.T)
        return helper.make_node("MatMul", [product.x, columns], list(node.output), name=node.name)

    def _float_gather(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """Gather instead of GatherBlockQuantized: an embedding, which a head may share."""
        packed, indices, scales, zero_points = [*node.input, ""][:4]
        settings = {"bits": 4, "block_size": 128, "gather_axis": 0, "quantize_axis": 1}
        settings |= {a.name: a.i for a in node.attribute}
        if settings["gather_axis"] != 0 or settings["quantize_axis"] not in (1, -1):
            raise _NotReducible(f"{self._name}: {node.name} gathers columns, or shares scales along rows")
        name, floats = self._floats_of(node, packed, scales, zero_points, settings["bits"], settings["block_size"])
        rows = self._twin(f"{name}.rows", floats)
        return helper.make_node("Gather", [rows, indices], list(node.output), name=node.name, axis=0)

    def _floats_of(
        self, node: onnx.NodeProto, packed: str, scales: str, zero_points: str, bits: int, size: int
    ) -> tuple[str, NDArray[np.float32]]:
        """The weight that a node reads, its name and the reference's floats `[N, K]`, the two having been compared."""
        moved = {output: n.input[0] for n in self._model.graph.node if n.op_type == "Reshape" for output in n.output}
        name, dot, kind = scales.rpartition(".")
        data = moved.get(packed, packed)
        if (
            not dot
            or kind != "scales"
            or not data.startswith(f"{name}.q{bits}")
            or zero_points not in ("", f"{name}.zero_points")
        ):
            read = ", ".join(filter(None, (data, scales, zero_points)))
            raise _NotReducible(f"{self._name}: {node.op_type} {node.name} reads {read}, which is not one weight")
        floats = self._floats.floats(name)
        rows, columns = floats.shape
        blocks = -(-columns // size)
        try:
            quantized = BlockWeights(
                packed=self._array(data).reshape(rows, blocks, size * bits // 8).astype(np.uint8, copy=False),
                scales=self._array(scales).reshape(rows, blocks).astype(np.float32, copy=False),
                zero_points=self._array(zero_points).reshape(rows, -1).astype(np.uint8) if zero_points else None,
                bits=bits,
                block_size=size,
                in_features=columns,
            )
        except ValueError as error:
            raise _NotReducible(f"{self._name}: {name} is not {rows} x {columns}, the reference's: {error}") from error
        floats = in_order_of(quantized, floats)
        self._errors.see(name, floats, quantized)
        return name, floats

    def _twin(self, name: str, array: NDArray[np.float32]) -> str:
        """The name of an initializer of the twin, which is stored unless it is."""
        twin = f"twin.{name}"
        if twin not in self._known:
            self._known[twin] = twin
            self._added.append(self._floats.store(twin, array))
        return twin


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
