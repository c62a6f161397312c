"""Small decoders written node by node: every kind of layer, cache and fault that a test of the doctor asks for.

A right one is also the reference of a faulty one of the same weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from bento_kv.contract.reference import LayerArrays
from bento_kv.errors import DecoderError, SourceError
from bento_kv.runtime.growing import GrowingGraph

VOCAB, WIDTH, HEADS, DIM, TAPS = 40, 16, 2, 8, 3
_LAST = 2**62
_PLACES = 512


@dataclass(frozen=True, slots=True)
class Made:
    """What a decoder is made of.

    Attributes:
        layers: `attention`, `conv` (a gated short convolution), `recurrent` (two decaying sums).
        window: positions that attention sees, itself among them; None sees all.
        places: rows of the table of positions.
        wraps: rows of the table of positions behind so many are those from the first on again.
        forgets: the length of the past counts modulo so many where the graph computes positions.
        keeps: the graph returns the last positions of its keys and values only, as many.
        static: capacity of a cache of fixed size that is written in place; None grows.
        write: name of the write position, and whether it is `span` `[sequence]`, `start` `[1]` or `scalar`.
        late: what is written lands so many slots behind its place.
        unmasked: attention sees the slots behind the write position too.
        keep: name and shape of an input that says how many logits are wanted, 0 all.
        scalar: name of another input, which changes the logits.
        stale: presents of convolution and recurrent states are the pasts unchanged.
        shifted: the convolution's present is one position too early.
        ids: declared axes of the token ids.
        mask: axes of the mask: `total` of past and new tokens, or `capacity`; None has none.
        takes_positions: `position_ids` is an input.
        names: patterns of the states' pasts and presents.
        stacked: states of convolutions are one tensor, layers first.
        bytes: keys and values are kept in int8, with one scale that is a weight.
        declared: positions that the configuration speaks of; those of the table unless given.
    """

    layers: Sequence[str] = ("attention", "attention")
    window: int | None = None
    places: int = _PLACES
    wraps: int | None = None
    forgets: int | None = None
    keeps: int | None = None
    static: int | None = None
    write: tuple[str, str] = ("cache_position", "span")
    late: int = 0
    unmasked: bool = False
    keep: tuple[str, list[int | str]] | None = None
    scalar: str | None = None
    stale: bool = False
    shifted: bool = False
    ids: tuple[int | str, int | str] = ("batch", "sequence")
    mask: str | None = "total"
    takes_positions: bool = True
    names: tuple[str, str] = ("past_{kind}.{layer}", "present_{kind}.{layer}")
    stacked: bool = False
    bytes: bool = False
    declared: int | None = None


def make(folder: Path, made: Made = Made()) -> Path:
    """Write the decoder and its configuration; the graph's file."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "num_attention_heads": HEADS,
        "hidden_size": WIDTH,
        "max_position_embeddings": made.declared or made.places,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    file = folder / "model.onnx"
    onnx.save(_Graph(made).model(), file)
    return file


class GraphReference:
    """A decoder with a growing cache as the model that others were made from."""

    def __init__(self, file: Path) -> None:
        self._graph = GrowingGraph.open(file)
        self.max_length: int | None = None

    def logits(
        self, ids: Sequence[int], *, at: Sequence[int] | None = None, past: LayerArrays | None = None
    ) -> NDArray[np.float32]:
        before = self._graph.empty_cache(1) if past is None else [(key[None], value[None]) for key, value in past]
        logits = self._run(np.array([ids]), before)[0]
        return logits if at is None else logits[list(at)]

    def at_offsets(self, ids: Sequence[int], firsts: Sequence[int]) -> NDArray[np.float32]:
        rows = np.array([list(ids)] * len(firsts))
        positions = np.array(firsts)[:, None] + np.arange(len(ids))
        return self._run(rows, self._graph.empty_cache(len(firsts)), positions=positions)

    def keys_values(self, ids: Sequence[int]) -> LayerArrays:
        present = self._graph.run(np.array([ids]), self._graph.empty_cache(1)).present
        return [(np.asarray(key[0], np.float32), np.asarray(value[0], np.float32)) for key, value in present]

    def operations(self, tokens: int) -> float:
        return float(tokens)

    def _run(self, *inputs: Any, **options: Any) -> NDArray[np.float32]:
        try:
            return self._graph.run(*inputs, **options).logits
        except DecoderError as error:
            raise SourceError(str(error)) from error


class _Graph:
    def __init__(self, made: Made) -> None:
        self._made = made
        self._random = np.random.default_rng(0)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def model(self) -> onnx.ModelProto:
        made = self._made
        self._take("input_ids", TensorProto.INT64, made.ids)
        # As many numbers are drawn for a shorter table, so that the weights behind it are the same.
        table = self._normal(max(made.places, _PLACES), WIDTH)[: made.places]
        if made.wraps is not None:
            table = table[np.arange(made.places) % made.wraps]
        embedded = self._op("Gather", self._const(self._normal(VOCAB, WIDTH)), "input_ids")
        self._tokens = self._dim("input_ids", 1)
        self._pasts()
        self._positions()
        x = self._op("Add", embedded, self._op("Gather", self._const(table), self._places))
        if made.scalar is not None:
            self._take(made.scalar, TensorProto.FLOAT, [])
            x = self._op("Mul", x, made.scalar)
        self._allow()
        for layer, kind in enumerate(made.layers):
            x = self._op("Add", x, getattr(self, f"_{kind}")(layer, self._normed(x)))
        if made.keep is not None:
            x = self._kept(x, *made.keep)
        if made.stacked:
            whole = self._op("Concat", *self._stack, axis=0)
            self._give("present_states", whole, TensorProto.FLOAT, [len(self._stack), made.ids[0], WIDTH, TAPS])
        logits = self._op("MatMul", self._normed(x), self._const(self._normal(WIDTH, VOCAB)))
        self._give("logits", logits, TensorProto.FLOAT, [made.ids[0], "logit_rows", VOCAB], first=True)
        graph = helper.make_graph(self._nodes, "decoder", self._inputs, self._outputs, self._weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def _pasts(self) -> None:
        made = self._made
        rows, time = made.ids[0], made.static or "past"
        self._held = ""
        self._stack: list[str] = []
        if made.stacked:
            self._take("past_states", TensorProto.FLOAT, [made.layers.count("conv"), rows, WIDTH, TAPS])
        for layer, kind in enumerate(made.layers):
            if kind == "attention":
                for side in ("key", "value"):
                    self._take(f"past_key_values.{layer}.{side}", self._cache_type, [rows, HEADS, time, DIM])
                if not self._held and made.static is None:
                    self._held = self._dim(f"past_key_values.{layer}.key", 2)
            elif not made.stacked:
                shape = [rows, WIDTH, TAPS] if kind == "conv" else [rows, 2, WIDTH]
                self._take(self._state(layer, kind)[0], TensorProto.FLOAT, shape)

    @property
    def _cache_type(self) -> int:
        return int(TensorProto.INT8 if self._made.bytes else TensorProto.FLOAT)

    def _state(self, layer: int, kind: str) -> tuple[str, str]:
        past, present = (name.format(layer=layer, kind=kind) for name in self._made.names)
        return past, present

    def _positions(self) -> None:
        """Names of the slots that the new tokens are written to, and of the rows of the table of positions."""
        made = self._made
        if made.static is not None:
            name, form = made.write
            axes: dict[str, list[int | str]] = {"span": ["sequence"], "start": [1], "scalar": []}
            self._take(name, TensorProto.INT64, axes[form])
            self._at = name if form == "span" else self._op("Add", self._range(self._tokens), name)
        else:
            self._at = self._range(self._tokens)
            if self._held:
                self._at = self._op("Add", self._at, self._held)
        at = self._at
        if made.forgets is not None:
            at = self._op("Add", self._range(self._tokens), self._op("Mod", self._held, self._const(made.forgets)))
        self._places = self._op("Unsqueeze", at, self._const([0]))
        if made.takes_positions:
            self._take("position_ids", TensorProto.INT64, made.ids)
            self._places = "position_ids"

    def _allow(self) -> None:
        """`[rows or 1, 1, tokens, columns]` of what is seen, added to scores."""
        made = self._made
        if "attention" not in made.layers:
            if made.mask:
                self._take("attention_mask", TensorProto.INT64, [made.ids[0], made.mask])
            return
        columns = self._const(made.static) if made.static else self._op("Add", self._held, self._tokens)
        cols = self._op("Unsqueeze", self._range(columns), self._const([0]))
        rows = self._op("Unsqueeze", self._at, self._const([1]))
        seen = self._op("LessOrEqual", cols, rows)
        if made.unmasked:
            seen = self._op("GreaterOrEqual", cols, self._const(0))
        if made.window is not None:
            seen = self._op("And", seen, self._op("Less", self._op("Sub", rows, cols), self._const(made.window)))
        seen = self._op("Unsqueeze", seen, self._const([0, 1]))
        if made.mask is not None:
            self._take("attention_mask", TensorProto.INT64, [made.ids[0], made.mask])
            own = self._op("Unsqueeze", self._op("Cast", "attention_mask", to=TensorProto.BOOL), self._const([1, 2]))
            seen = self._op("And", seen, own)
        self._bias = self._op("Where", seen, self._const(np.float32(0)), self._const(np.float32(-1e9)))

    def _attention(self, layer: int, x: str) -> str:
        q, k, v = (self._heads(self._linear(x, WIDTH)) for _ in range(3))
        sides = [self._joined(layer, side, new) for side, new in (("key", k), ("value", v))]
        scores = self._op("MatMul", q, self._op("Transpose", sides[0], perm=[0, 1, 3, 2]))
        weights = self._op("Softmax", self._op("Add", scores, self._bias), axis=-1)
        mixed = self._op("Transpose", self._op("MatMul", weights, sides[1]), perm=[0, 2, 1, 3])
        return self._linear(self._op("Reshape", mixed, self._const([0, -1, WIDTH])), WIDTH)

    def _joined(self, layer: int, side: str, new: str) -> str:
        made, past = self._made, f"past_key_values.{layer}.{side}"
        scale = (self._const(np.float32(1 / 16)), self._const(np.int8(0))) if made.bytes else ()
        if made.bytes:
            new = self._op("QuantizeLinear", new, *scale)
        if made.static is not None:
            at = self._op("Add", self._at, self._const(made.late)) if made.late else self._at
            index = self._op("Unsqueeze", at, self._const([0, 1, 3]))
            index = self._op("Expand", index, self._op("Shape", new))
            whole = self._op("ScatterElements", past, index, new, axis=2)
        else:
            whole = self._op("Concat", past, new, axis=2)
        present = whole
        if made.keeps is not None:
            present = self._op("Slice", whole, self._const([-made.keeps]), self._const([_LAST]), self._const([2]))
        shape = [made.ids[0], HEADS, made.static or "total", DIM]
        self._give(f"present.{layer}.{side}", present, self._cache_type, shape)
        return self._op("DequantizeLinear", whole, *scale) if made.bytes else whole

    def _conv(self, layer: int, x: str) -> str:
        """`gate * conv(past columns, x)`, the state being the last `TAPS` columns."""
        past, present = self._state(layer, "conv")
        if self._made.stacked:
            past = self._op("Gather", "past_states", self._const(len(self._stack)), axis=0)
        columns = self._op("Transpose", self._linear(x, WIDTH), perm=[0, 2, 1])
        whole = self._op("Concat", past, columns, axis=2)
        starts, ends = ([-TAPS - 1], [-1]) if self._made.shifted else ([-TAPS], [_LAST])
        last = self._op("Slice", whole, self._const(starts), self._const(ends), self._const([2]))
        if self._made.stacked:
            self._stack.append(self._op("Unsqueeze", past if self._made.stale else last, self._const([0])))
        else:
            self._give(present, past if self._made.stale else last, TensorProto.FLOAT, [self._made.ids[0], WIDTH, TAPS])
        y = self._op("Conv", whole, self._const(self._normal(WIDTH, 1, TAPS)), group=WIDTH, kernel_shape=[TAPS])
        y = self._op("Slice", y, self._const([1]), self._const([_LAST]), self._const([2]))
        return self._linear(self._op("Transpose", y, perm=[0, 2, 1]), WIDTH)

    def _recurrent(self, layer: int, x: str) -> str:
        """Two sums over what came before, each with its decay: `h[t] = a h[t-1] + u[t]`."""
        past, present = self._state(layer, "recurrent")
        decay = self._const(np.array([0.5, 0.9], np.float32).reshape(2, 1, 1))
        at = self._op("Cast", self._range(self._tokens), to=TensorProto.FLOAT)
        behind = self._op(
            "Sub", self._op("Unsqueeze", at, self._const([1])), self._op("Unsqueeze", at, self._const([0]))
        )
        kernel = self._op("Pow", decay, self._op("Max", behind, self._const(np.float32(0))))
        zero = self._const(np.float32(0))
        kernel = self._op("Where", self._op("GreaterOrEqual", behind, zero), kernel, zero)  # [2, tokens, tokens]
        new = self._op("MatMul", kernel, self._op("Unsqueeze", self._linear(x, WIDTH), self._const([1])))
        ages = self._op("Unsqueeze", self._op("Add", at, self._const(np.float32(1))), self._const([1]))
        old = self._op("Mul", self._op("Pow", decay, ages), self._op("Unsqueeze", past, self._const([2])))
        states = self._op("Add", new, old)  # [rows, 2, tokens, width]
        last = self._op("Gather", states, self._const(-1), axis=2)
        self._give(present, past if self._made.stale else last, TensorProto.FLOAT, [self._made.ids[0], 2, WIDTH])
        mixed = self._op("ReduceSum", states, self._const([1]), keepdims=0)
        return self._linear(mixed, WIDTH)

    def _kept(self, x: str, name: str, shape: list[int | str]) -> str:
        self._take(name, TensorProto.INT64, shape)
        count = self._op("Reshape", name, self._const([1]))
        none = self._op("Equal", count, self._const([0]))
        start = self._op("Where", none, self._const([0]), self._op("Neg", count))
        return self._op("Slice", x, start, self._const([_LAST]), self._const([1]))

    def _heads(self, flat: str) -> str:
        return self._op("Transpose", self._op("Reshape", flat, self._const([0, -1, HEADS, DIM])), perm=[0, 2, 1, 3])

    def _linear(self, x: str, width: int) -> str:
        return self._op("MatMul", x, self._const(self._normal(WIDTH, width) / np.float32(np.sqrt(WIDTH))))

    def _normed(self, x: str) -> str:
        square = self._op("ReduceMean", self._op("Mul", x, x), axes=[-1], keepdims=1)
        return self._op("Div", x, self._op("Sqrt", self._op("Add", square, self._const(np.float32(1e-5)))))

    def _range(self, count: str) -> str:
        return self._op("Range", self._const(0), count, self._const(1))

    def _dim(self, value: str, axis: int) -> str:
        return self._op("Gather", self._op("Shape", value), self._const(axis))

    def _normal(self, *shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return self._random.normal(0, 1, shape).astype(np.float32)

    def _const(self, value: ArrayLike) -> str:
        array = np.asarray(value)
        name = f"c{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(array, name))
        return name

    def _op(self, kind: str, *inputs: str, **attributes: object) -> str:
        name = f"v{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def _take(self, name: str, kind: int, shape: Sequence[int | str]) -> None:
        self._inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))

    def _give(self, name: str, value: str, kind: int, shape: Sequence[int | str], *, first: bool = False) -> None:
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        info = helper.make_tensor_value_info(name, kind, list(shape))
        self._outputs.insert(0 if first else len(self._outputs), info)
