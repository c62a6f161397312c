"""Steps of one token a row: the query heads that share keys become so many queries of one head.

GroupQueryAttention reads the keys anew for each query head. Told that a row has one head for each head of keys, and as
many queries as heads share it, it reads them once. It writes a key and a value for every query then: copies of the
newest token's, which a bias hides from all of them, and which later tokens overwrite. Queries of a row meet the same
arithmetic as those of a prompt, several at a time, so that a token's results are, to the last bit, those of any other way
to split its sequence into steps.

Both forms stand in the graph, and an input says which one a step takes: they read the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bento_kv.contract.graph_io import (
    GATHER_INDEX,
    GROUP_BIAS,
    GROUPED,
    POSITION_IDS,
    QUERY_SEQLENS,
    SCATTER_INDEX,
    SEQLENS_K,
    group_inputs,
    is_past,
)
from bento_kv.contract.operators import (
    GROUP_QUERY_ATTENTION,
    KV_NUM_HEADS,
    LOCAL_WINDOW_SIZE,
    NUM_HEADS,
    AttentionInput,
    AttentionOutput,
)
from bento_kv.export.graph.nodes import attribute, constant, input_at, input_named, only_user, producer, stand_in

_PRESENTS = slice(AttentionOutput.PRESENT_KEY, AttentionOutput.PRESENT_VALUE + 1)


@dataclass(frozen=True, slots=True)
class _Attention:
    """A layer's attention, from packed tokens to packed tokens."""

    gather: ir.Node
    node: ir.Node
    scatter: ir.Node
    heads: int
    kv_heads: int

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads


def group_queries(model: ir.Model) -> int:
    """Give every attention its second form, and the graph the inputs `GROUPED` and `GROUP_BIAS`: in all layers or none.

    Not where a layer has a window, which slides with the queries, or sinks, which heads have of their own; and not where
    layers differ in how many query heads share keys.

    Returns the number of layers.
    """
    layers = [_attention(node) for node in list(model.graph) if node.op_type == GROUP_QUERY_ATTENTION]
    whole = [layer for layer in layers if layer is not None]
    groups = {layer.group for layer in whole}
    if len(whole) < len(layers) or len(groups) != 1 or groups == {1}:
        return 0
    inputs = _Inputs(model, groups.pop())
    for number, layer in enumerate(whole):
        _two_forms(model, layer, inputs, f"layers.{number}.attention")
    model.graph.insert_before(model.graph[0], inputs.nodes)
    return len(whole)


def _attention(node: ir.Node) -> _Attention | None:
    """The layer whose attention is the node, if it can be grouped."""
    gather, scatter = (
        producer(node.inputs[AttentionInput.QUERY], "GatherND"),
        only_user(node.outputs[AttentionOutput.OUTPUT], "GatherND"),
    )
    sink = input_at(node, AttentionInput.HEAD_SINK)
    if gather is None or scatter is None or sink is not None or LOCAL_WINDOW_SIZE in node.attributes:
        return None
    return _Attention(gather, node, scatter, attribute(node, NUM_HEADS, 0), attribute(node, KV_NUM_HEADS, 0))


@dataclass(slots=True)
class _Inputs:
    """What the second form of all layers reads, computed once a step from what the first form reads."""

    model: ir.Model
    group: int
    nodes: list[ir.Node] = field(default_factory=list)
    _known: dict[str, ir.Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for spec in group_inputs(self.group):
            kind = ir.TensorType(ir.DataType[spec.dtype.upper()])
            value = ir.Value(name=spec.name, type=kind, shape=ir.Shape(spec.shape))
            # In front of the cache, which is the rest.
            self.model.graph.inputs.insert(self._steps_inputs(), value)
            self._known[spec.name] = value

    def _steps_inputs(self) -> int:
        return sum(not is_past(str(value.name)) for value in self.model.graph.inputs)

    def grouped(self) -> ir.Value:
        return self._known[GROUPED]

    def bias(self) -> ir.Value:
        return self._known[GROUP_BIAS]

    def seqlens_k(self) -> ir.Value:
        """`[rows]`: the copies stand behind the newest token."""
        copies = np.array([self.group - 1], np.int32)
        return self._once("group.seqlens_k", "Add", input_named(self.model, SEQLENS_K), copies)

    def query_seqlens(self) -> ir.Value:
        """`[rows]`."""
        queries = np.array([self.group], np.int32)
        return self._once("group.query_seqlens", "Mul", input_named(self.model, QUERY_SEQLENS), queries)

    def positions(self) -> ir.Value:
        """`[rows, group]`."""
        return self._once("group.positions", "Gather", input_named(self.model, POSITION_IDS), self._tokens())

    def cells(self, heads: int, kv_heads: int) -> ir.Value:
        """`[rows, group, 3 * kv_heads]`: of each query, which heads of `[tokens * (heads + 2 * kv_heads)]` it has."""
        of_token = heads + 2 * kv_heads
        queries = np.arange(heads).reshape(kv_heads, self.group).T  # query heads that share keys lie side by side
        shared = np.arange(heads, of_token)
        own = np.concatenate([queries, np.broadcast_to(shared, (self.group, len(shared)))], axis=1)
        name = f"group.cells.{heads}.{kv_heads}"
        first = self._once(f"{name}.first", "Mul", self._tokens(), np.array([of_token], np.int64))
        wide = self._once(f"{name}.wide", "Unsqueeze", first, np.array([-1], np.int64))
        return self._once(name, "Add", wide, own)

    def places(self, heads: int, kv_heads: int, *, batched: bool) -> ir.Value:
        """`[tokens, heads]`, or `[1, tokens, heads]`: of each token, its heads among `[rows * group * kv_heads]`."""
        own = np.arange(heads).reshape(self.group, kv_heads).T.reshape(-1)
        name = f"group.places.{heads}.{kv_heads}"
        first = self._once(f"{name}.first", "Mul", input_named(self.model, SCATTER_INDEX), np.array([heads], np.int64))
        axes = np.array([0, 2] if batched else [1], np.int64)
        wide = self._once(f"{name}.wide", "Unsqueeze", first, axes)
        return self._once(name, "Add", wide, own)

    def _tokens(self) -> ir.Value:
        """`[rows, group]`: the token of each query."""
        index = input_named(self.model, GATHER_INDEX)
        bounds = [np.array([bound], np.int64) for bound in (0, 1, 1)]
        first = self._once("group.first", "Slice", index, *bounds)
        return self._once("group.tokens", "Add", first, np.zeros(self.group, np.int64))

    def _once(self, name: str, operator: str, *inputs: ir.Value | NDArray[np.generic]) -> ir.Value:
        """The output of a node, made when it is first asked for."""
        if name not in self._known:
            values = [self._value(f"{name}.{i}", each) for i, each in enumerate(inputs)]
            node = ir.node(operator, values, name=name)
            node.outputs[0].name = name
            self.nodes.append(node)
            self._known[name] = node.outputs[0]
        return self._known[name]

    def _value(self, name: str, given: ir.Value | NDArray[np.generic]) -> ir.Value:
        return constant(self.model, name, given) if isinstance(given, np.ndarray) else given


def _two_forms(model: ir.Model, layer: _Attention, inputs: _Inputs, name: str) -> None:
    """An If over both forms in place of a layer's attention."""
    node = layer.node
    presents = list(node.outputs[_PRESENTS])
    out = layer.scatter.outputs[0]
    both = ir.Node(
        "",
        "If",
        [inputs.grouped()],
        [
            ir.AttrGraph("then_branch", _grouped(model, layer, inputs, f"{name}.grouped")),
            ir.AttrGraph("else_branch", _as_it_was(layer, f"{name}.apart")),
        ],
        num_outputs=3,
        name=name,
    )
    replaced = [(out, both.outputs[0]), *zip(presents, both.outputs[1:], strict=True)]
    stand_in(model, node, [both], replaced)
    for each in (layer.scatter, node, layer.gather):
        model.graph.remove(each, safe=True)


def _copy(node: ir.Node, inputs: list[ir.Value | None], name: str, **changed: int) -> ir.Node:
    """The node with other inputs."""
    attributes = [each for key, each in node.attributes.items() if key not in changed]
    attributes += [ir.AttrInt64(key, value) for key, value in changed.items()]
    new = ir.Node(node.domain, node.op_type, inputs, attributes, num_outputs=len(node.outputs), name=name)
    for old, value in zip(node.outputs, new.outputs, strict=True):
        value.shape, value.type = old.shape, old.type
    for index, value in enumerate(new.outputs):
        value.name = f"{name}.{index}"
    return new


def _branch(nodes: list[ir.Node], attention: ir.Node, name: str) -> ir.Graph:
    """The packed tokens that the last node makes, and the cache."""
    return ir.Graph([], [nodes[-1].outputs[0], *attention.outputs[_PRESENTS]], nodes=nodes, name=name)


def _as_it_was(layer: _Attention, name: str) -> ir.Graph:
    gather = _copy(layer.gather, list(layer.gather.inputs), f"{name}.cells")
    node = _copy(layer.node, [gather.outputs[0], *layer.node.inputs[1:]], name)
    scatter = _copy(layer.scatter, [node.outputs[0], *layer.scatter.inputs[1:]], f"{name}.tokens")
    return _branch([gather, node, scatter], node, name)


def _grouped(model: ir.Model, layer: _Attention, inputs: _Inputs, name: str) -> ir.Graph:
    cache = layer.node.outputs[AttentionOutput.PRESENT_KEY].shape
    assert cache is not None
    head_dim = cache[3]
    assert isinstance(head_dim, int)
    out = layer.scatter.outputs[0]
    assert out.shape is not None
    batched = len(out.shape) == 3
    by_head = _shape(model, f"group.by_head.{head_dim}", [-1, head_dim])
    heads = ir.node("Reshape", [layer.gather.inputs[0], by_head], name=f"{name}.heads")
    cells = ir.node("Gather", [heads.outputs[0], inputs.cells(layer.heads, layer.kv_heads)], name=f"{name}.cells")
    packed = ir.node("Reshape", [cells.outputs[0], _shape(model, "group.by_query", [0, 0, -1])], name=f"{name}.queries")
    given = list(layer.node.inputs)
    given[AttentionInput.QUERY] = packed.outputs[0]
    given[AttentionInput.SEQLENS_K] = inputs.seqlens_k()
    given[AttentionInput.ATTENTION_BIAS] = inputs.bias()
    given[AttentionInput.QUERY_SEQLENS] = inputs.query_seqlens()
    if given[AttentionInput.COS_CACHE] is not None:
        given[AttentionInput.POSITION_IDS] = inputs.positions()
    node = _copy(layer.node, given, name, **{NUM_HEADS: layer.kv_heads})
    node.outputs[0].shape = None
    flat = ir.node("Reshape", [node.outputs[0], by_head], name=f"{name}.flat")
    places = inputs.places(layer.heads, layer.kv_heads, batched=batched)
    tokens = ir.node("Gather", [flat.outputs[0], places], name=f"{name}.places")
    wanted = [0, 0, -1] if batched else [0, -1]
    last = ir.node(
        "Reshape",
        [tokens.outputs[0], _shape(model, f"group.by_token.{len(wanted)}", wanted)],
        name=f"{name}.tokens",
    )
    last.outputs[0].shape, last.outputs[0].type = out.shape, out.type
    nodes = [heads, cells, packed, node, flat, tokens, last]
    for each in nodes:
        if each is not node:
            each.outputs[0].name = f"{each.name}.out"
    return _branch(nodes, node, name)


def _shape(model: ir.Model, name: str, sizes: list[int]) -> ir.Value:
    return model.graph.initializers.get(name) or constant(model, name, np.array(sizes, np.int64))
