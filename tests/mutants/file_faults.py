"""Faults of files, of declarations and of sizes: what keeps a decoder from being loaded or fed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests import layouts
from tests.mutants.surgery import (
    constant,
    declare,
    joins,
    node,
    past_length,
    producer,
    returned,
    rewire,
    size,
    without_input,
    without_outputs,
)

Damage = Callable[[Path], None]
Fault = Callable[[onnx.ModelProto], None]
_SIDES = ("key", "value")

# Of files, after they were written: each is given the folder.


def cut_off(folder: Path) -> None:
    file = next(folder.glob("*.onnx"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def without_data(folder: Path) -> None:
    next(folder.glob("*.data")).unlink()


def short_data(folder: Path) -> None:
    file = next(folder.glob("*.data"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def data_renamed(folder: Path) -> None:
    file = next(folder.glob("*.data"))
    file.rename(folder / "weights.bin")


def without_second_file(folder: Path) -> None:
    (folder / "decoder_with_past_model.onnx").unlink()


def second_file_of_another_model(folder: Path) -> None:
    """decoder_with_past_model.onnx comes from another training run: one of its matrices differs."""
    file = folder / "decoder_with_past_model.onnx"
    model = onnx.load(file)
    tensor = next(t for t in model.graph.initializer if list(t.dims) == [64, 96])
    tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, file)


def branches_exchanged(folder: Path) -> None:
    """use_cache_branch means the opposite of what it says."""
    file = folder / "decoder_model_merged.onnx"
    model = onnx.load(file)
    (branch,) = [n for n in model.graph.node if n.op_type == "If"]
    branch.input[0] = node(model, "Not", "use_cache_branch")
    model.graph.node.reverse()
    onnx.save(model, file)


def configuration_of(heads: int, head_dim: int) -> Damage:
    """Beside it, a genai_config.json that says another geometry than the graph has."""

    def write(folder: Path) -> None:
        decoder = {"filename": "model.onnx", "num_key_value_heads": heads, "head_size": head_dim}
        (folder / "genai_config.json").write_text(json.dumps({"model": {"decoder": decoder}}))

    return write


# Of the graph as a whole.


def ir_version_99(model: onnx.ModelProto) -> None:
    model.ir_version = 99


def opset_99(model: onnx.ModelProto) -> None:
    next(entry for entry in model.opset_import if not entry.domain).version = 99


def unknown_operator(model: onnx.ModelProto) -> None:
    rewire(model, "input_ids", lambda ids: node(model, "Rehash", ids))


def unknown_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    returned(model, "logits", lambda logits: node(model, "SoftCap", logits, domain="com.example"))


def types_do_not_fit(model: onnx.ModelProto) -> None:
    returned(model, "logits", lambda logits: node(model, "Mul", logits, constant(model, 2)))


# Of the cache's inputs and outputs.


def without_cache(model: onnx.ModelProto) -> None:
    model.CopyFrom(layouts.as_uncached(model))


def without_presents(model: onnx.ModelProto) -> None:
    without_outputs(model, [value.name for value in layouts.cache_outputs(model)])


def one_present_dropped(model: onnx.ModelProto) -> None:
    without_outputs(model, ["present.1.value"])


def one_past_dropped(model: onnx.ModelProto) -> None:
    """Its layer starts from nothing in each step."""
    without_input(model, "past_key_values.0.value")
    joined = producer(model, "present.0.value")
    joined.CopyFrom(helper.make_node("Identity", [joined.input[1]], ["present.0.value"]))


def presents_of_layers_swapped(model: onnx.ModelProto) -> None:
    _rename_outputs(model, {f"present.{a}.{side}": f"present.{1 - a}.{side}" for a in (0, 1) for side in _SIDES})


def keys_and_values_swapped(model: onnx.ModelProto) -> None:
    _rename_outputs(model, {f"present.{a}.{_SIDES[s]}": f"present.{a}.{_SIDES[1 - s]}" for a in (0, 1) for s in (0, 1)})


def _rename_outputs(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Other names, in the order that outputs had."""
    order = [value.name for value in model.graph.output]
    model.CopyFrom(layouts.renamed(model, names))
    outputs = {value.name: value for value in model.graph.output}
    ordered = [copy.deepcopy(outputs[name]) for name in order]
    model.graph.ClearField("output")
    model.graph.output.extend(ordered)


def heads_repeated_in_present(model: onnx.ModelProto) -> None:
    """Present holds the keys and values as the query heads see them: repeated for each group."""
    for value in layouts.cache_outputs(model):
        returned(model, value.name, lambda inner: node(model, "Concat", inner, inner, axis=1))
        declare(model, value.name, 1, 4)


def heads_repeated_undeclared(model: onnx.ModelProto) -> None:
    """The same, and the outputs declare what they do not return."""
    for value in layouts.cache_outputs(model):
        returned(model, value.name, lambda inner: node(model, "Concat", inner, inner, axis=1))
        declare(model, value.name, 1, "heads")


def past_of_hidden_by_heads(model: onnx.ModelProto) -> None:
    """The past is declared with a head size of hidden_size / num_attention_heads, which the keys do not have."""
    for value in layouts.cache_inputs(model):
        declare(model, value.name, 3, 8)
    _opaque_pasts(model)


def past_of_all_heads(model: onnx.ModelProto) -> None:
    """The past is declared with as many heads as there are queries."""
    for value in layouts.cache_inputs(model):
        declare(model, value.name, 1, 4)
    _opaque_pasts(model)


def _opaque_pasts(model: onnx.ModelProto) -> None:
    """Shape inference does not see through them: the misfit shows in the first run and not at load."""
    for join in joins(model):
        past = join.input[0]
        none = node(model, "Sub", size(model, past, 0), size(model, past, 0))
        shape = node(model, "Add", node(model, "Shape", past), none)
        join.input[0] = node(model, "Reshape", past, shape, allowzero=1)


def present_in_halves(model: onnx.ModelProto) -> None:
    for value in layouts.cache_outputs(model):
        returned(model, value.name, lambda inner: node(model, "Cast", inner, to=TensorProto.FLOAT16))
        value.type.tensor_type.elem_type = TensorProto.FLOAT16


def one_present_in_doubles(model: onnx.ModelProto) -> None:
    returned(model, "present.1.key", lambda inner: node(model, "Cast", inner, to=TensorProto.DOUBLE))
    next(v for v in model.graph.output if v.name == "present.1.key").type.tensor_type.elem_type = TensorProto.DOUBLE


# Of axes that have to vary.


def declared(**sizes: int) -> Fault:
    def fault(model: onnx.ModelProto) -> None:
        model.CopyFrom(layouts.as_fixed_axes(model, **sizes))

    return fault


def traced(*axes: str, **sizes: int) -> Fault:
    """The sizes of these axes are constants within, and the declared names are as they were."""

    def fault(model: onnx.ModelProto) -> None:
        model.CopyFrom(layouts.as_traced_at(model, axes, **{"batch": 2, "sequence": 3, "past": 4, **sizes}))

    return fault


def batch_in_a_reshape(model: onnx.ModelProto) -> None:
    """The logits are shaped for one row: several rows come out as one long one."""
    returned(model, "logits", lambda logits: node(model, "Reshape", logits, constant(model, [1, -1, 300])))


def positions_of_one_row(model: onnx.ModelProto) -> None:
    """Position ids are reshaped to one row, which is what the example had."""
    shape = node(model, "Concat", constant(model, [1]), size(model, "input_ids", 1), axis=0)
    rewire(model, "position_ids", lambda ids: node(model, "Reshape", ids, shape))


def mask_of_fixed_length(model: onnx.ModelProto) -> None:
    """The range that the causal mask compares with ends where it did in the example: at 4 + 3."""
    limits = {n.input[1] for n in model.graph.node if n.op_type == "Range" and _is_total(model, n.input[1])}
    for limit in limits:
        rewire(model, limit, lambda _: constant(model, 7), where=lambda n: n.op_type == "Range")
    assert limits


def _is_total(model: onnx.ModelProto, name: str) -> bool:
    return producer(model, name).op_type == "Add"


# Of a past of length 0.


def zero_copies_a_dimension(model: onnx.ModelProto) -> None:
    """Rows and heads are fused by a Reshape for which a size of 0 means: as it was, which is the heads."""
    for join in joins(model):
        past = join.input[0]
        fused = node(model, "Mul", size(model, past, 0), size(model, past, 1))
        shape = node(model, "Concat", fused, node(model, "Shape", past, start=2), axis=0)
        flat = node(model, "Reshape", past, shape, allowzero=0)
        join.input[0] = node(model, "Reshape", flat, node(model, "Shape", past), allowzero=1)


def last_of_past(model: onnx.ModelProto) -> None:
    """The graph reads the past's last position, to find out its scale."""
    last = node(model, "Gather", "past_key_values.0.key", constant(model, -1), axis=2)
    nothing = node(model, "Mul", node(model, "ReduceMean", last, keepdims=0), constant(model, 0.0, np.float32))
    returned(model, "logits", lambda logits: node(model, "Add", logits, nothing))


def first_column_of_past(model: onnx.ModelProto) -> None:
    """The first column that is no padding is looked for among those of the past, of which there may be none."""
    length = node(model, "Unsqueeze", past_length(model), constant(model, [0]))
    seen = node(model, "Slice", "attention_mask", constant(model, [0]), length, constant(model, [1]))
    first = node(model, "Cast", node(model, "ArgMax", seen, axis=1, keepdims=1), to=TensorProto.FLOAT)
    nothing = node(
        model, "Unsqueeze", node(model, "Mul", first, constant(model, 0.0, np.float32)), constant(model, [2])
    )
    returned(model, "logits", lambda logits: node(model, "Add", logits, nothing))
