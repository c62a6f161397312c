"""Where tokens and rows stand: no node moves what a choice of indices can leave where it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bento_kv.contract.graph_io import GATHER_INDEX, LOGITS_INDEX, SCATTER_INDEX
from bento_kv.contract.operators import GROUP_QUERY_ATTENTION, AttentionInput, AttentionOutput
from bento_kv.export.graph.nodes import array_of, attribute, constant, input_named, only_user, producer, stand_in

# What may stand between the chosen tokens' hidden states and the logits: it works on the last axis or by element.
_BY_TOKEN = frozenset({"MatMul", "Add", "Mul", "Div", "Sub", "Tanh", "Cast"})


def address_cells(model: ir.Model) -> int:
    """Gather tokens into the attention's cells, and out of them, by pairs of indices that are computed once a step.

    Traced were indices into flattened arrays, with a reshape on either side of every attention. Returns the layers.
    """
    count = 0
    pairs = None
    for node in list(model.graph):
        if node.op_type != GROUP_QUERY_ATTENTION:
            continue
        flat = only_user(node.outputs[AttentionOutput.OUTPUT], "Reshape")
        scattered = None if flat is None else only_user(flat.outputs[0], "GatherND")
        gather = producer(node.inputs[AttentionInput.QUERY], "GatherND")
        if scattered is None or gather is None:
            continue
        pairs = pairs or _pairs(model)
        back = only_user(scattered.outputs[0], "Reshape")
        batched = back is not None and back.outputs[0].shape is not None and len(back.outputs[0].shape) == 3
        last = back if back is not None and batched else scattered
        places = pairs.batched_places if batched else pairs.places
        out = ir.node(
            "GatherND", [node.outputs[AttentionOutput.OUTPUT], places], {"batch_dims": 0}, name=f"{node.name}/out"
        )
        stand_in(model, last, [out], [(last.outputs[0], out.outputs[0])])
        squeeze = producer(gather.inputs[0], "Squeeze")
        if squeeze is not None:
            gather.replace_input_with(0, squeeze.inputs[0])
            gather.replace_input_with(1, pairs.cells)
        count += 1
    return count


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Where things are.

    Attributes:
        cells: `[rows, width, 2]` of each cell its token in `[1, tokens, N]`.
        places: `[tokens, 2]` of each token its cell in `[rows, width, N]`.
        batched_places: the same, `[1, tokens, 2]`.
    """

    cells: ir.Value
    places: ir.Value
    batched_places: ir.Value


def _pairs(model: ir.Model) -> _Pairs:
    """Compute them, at the beginning of the graph."""
    gather, scatter = input_named(model, GATHER_INDEX), input_named(model, SCATTER_INDEX)
    cells = _batched_index(model, gather, "cells", "cells")
    last = model.graph.initializers["cells.last"]
    first = constant(model, "cells.first", np.array([0], np.int64))
    width = ir.node("Shape", [gather], {"start": 1, "end": 2}, name="cells/width")
    row = ir.node("Div", [scatter, width.outputs[0]], name="cells/row")
    column = ir.node("Mod", [scatter, width.outputs[0]], name="cells/column")
    parts = [
        ir.node("Unsqueeze", [each.outputs[0], last], name=f"cells/place.{i}") for i, each in enumerate((row, column))
    ]
    places = ir.node("Concat", [part.outputs[0] for part in parts], {"axis": -1}, name="cells/place")
    batched = ir.node("Unsqueeze", [places.outputs[0], first], name="cells/places")
    model.graph.insert_before(model.graph[0], [width, *cells, row, column, *parts, places, batched])
    return _Pairs(cells[-1].outputs[0], places.outputs[0], batched.outputs[0])


def _batched_index(model: ir.Model, index: ir.Value, prefix: str, name: str) -> list[ir.Node]:
    """Nodes that turn indices of tokens `[...]` into indices into `[1, tokens, N]`, `[..., 2]`; the last one's output."""
    zero = constant(model, f"{prefix}.zero", np.array(0, np.int64))
    last = constant(model, f"{prefix}.last", np.array([-1], np.int64))
    none = ir.node("Mul", [index, zero], name=f"{prefix}/none")
    ends = [
        ir.node("Unsqueeze", [value, last], name=f"{prefix}/{i}") for i, value in enumerate((none.outputs[0], index))
    ]
    pairs = ir.node("Concat", [end.outputs[0] for end in ends], {"axis": -1}, name=f"{prefix}/{name}")
    return [none, *ends, pairs]


def _constant(value: ir.Value) -> bool:
    """Whether it is a constant, or one transposed: the runtime does that once, when it loads the graph."""
    turned = producer(value, "Transpose")
    return array_of(value if turned is None else turned.inputs[0]) is not None


def choose_tokens_once(model: ir.Model) -> int:
    """Take the tokens whose logits are wanted out of the hidden states in one go, without the axis of length 1.

    Traced were two transposes around a gather, and a copy of all logits to drop that axis. Returns how many it mended.
    """
    logits = model.graph.outputs[0]
    drop = producer(logits, "Gather")
    if drop is None or attribute(drop, "axis", 0) != 0 or array_of(drop.inputs[1]) is None:
        return 0
    chain = drop.inputs[0]
    while (node := producer(chain, *_BY_TOKEN)) is not None:
        data = [value for value in node.inputs if value is not None and not _constant(value)]
        if len(data) != 1:
            return 0
        chain = data[0]
    outer = producer(chain, "Transpose")
    gather = None if outer is None else producer(outer.inputs[0], "GatherND")
    inner = None if gather is None else producer(gather.inputs[0], "Transpose")
    if outer is None or gather is None or inner is None or chain is None or drop.inputs[0] is None:
        return 0
    pairs = _batched_index(model, input_named(model, LOGITS_INDEX), "tokens", "pairs")
    chosen = ir.node("GatherND", [inner.inputs[0], pairs[-1].outputs[0]], {"batch_dims": 0}, name="tokens/chosen")
    model.graph.insert_before(outer, [*pairs, chosen])
    ir.convenience.replace_all_uses_with(chain, chosen.outputs[0])
    before = drop.inputs[0]
    name = logits.name
    shape, kind = logits.shape, logits.type
    logits.name = f"{name}.dropped"
    model.graph.outputs[0] = before
    before.name, before.shape, before.type = name, shape, kind
    model.graph.remove(drop, safe=True)
    return 1
