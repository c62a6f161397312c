"""Looking at a graph while it runs: at which sizes it does, and what flows into its reshapes there."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from bento_kv.errors import BentoKVError
from bento_kv.repair.files import write
from bento_kv.repair.shapes import constants
from bento_kv.repair.trial import Sizes, Subject, rounding
from bento_kv.runtime.growing import GrowingGraph, geometry
from bento_kv.runtime.session import open_session

_SHAPED = {"Reshape": (0, 1), "Expand": (0, 1), "ConstantOfShape": (0,)}


def traced_sizes(model: onnx.ModelProto, file: Path, origin: Path, declared: dict[str, int]) -> Sizes | None:
    """Sizes at which the graph runs: those declared, and for the others numbers that stand in it as constants."""
    write(model, file)
    try:
        subject = Subject.open(file, origin)
    except BentoKVError:
        return None
    numbers = sorted({n for value in _shape_constants(model) for n in value.ravel().tolist() if 1 < n <= 4096})[:24]

    def of(axis: str, usual: Sequence[int], guesses: Sequence[int]) -> list[int]:
        return [declared[axis]] if axis in declared else list(dict.fromkeys([*usual, *guesses]))

    batches, sequences = of("batch", [2, 1], numbers[:8]), of("sequence", [3, 1], numbers)
    for batch, sequence in itertools.product(batches, sequences):
        behind = [number - sequence for number in numbers if number > sequence]  # a size may be of past and tokens
        pasts = of("past", [4, 0], [*behind, *numbers]) if subject.graph.interface.has_past else [0]
        for past in pasts:
            sizes = Sizes(batch, sequence, past)
            try:
                subject.run(sizes)
            except BentoKVError:
                continue
            return sizes
    return None


def _shape_constants(model: onnx.ModelProto) -> list[NDArray[np.generic]]:
    known = constants(model)
    wanted = {
        "Reshape": (1,),
        "Expand": (1,),
        "ConstantOfShape": (0,),
        "Range": (0, 1),
        "Slice": (1, 2),
        "Concat": None,
    }
    found = []
    for node in model.graph.node:
        places = wanted.get(node.op_type, ())
        for index, name in enumerate(node.input):
            if name in known and (places is None or index in places) and known[name].dtype == np.int64:
                found.append(known[name])
    found += [np.array(value.shape, np.int64) for value in known.values() if value.ndim > 1 and value.dtype == np.bool_]
    return found


class _Tap:
    """A session whose graph gives more than it is asked for: what flows into reshapes and expands."""

    def __init__(self, session: ort.InferenceSession, extra: Sequence[str]) -> None:
        self._session = session
        self._extra = list(extra)
        self.seen: dict[str, NDArray[np.generic]] = {}

    def get_inputs(self) -> Any:
        return self._session.get_inputs()

    def get_outputs(self) -> Any:
        return [value for value in self._session.get_outputs() if value.name not in self._extra]

    def run(self, names: Sequence[str], feeds: dict[str, NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        results = self._session.run([*names, *self._extra], feeds)
        self.seen = dict(zip(self._extra, results[len(names) :], strict=True))
        own: list[NDArray[np.generic]] = results[: len(names)]
        return own


def observe(model: onnx.ModelProto, sizes: Sizes, file: Path, origin: Path) -> dict[str, NDArray[np.generic]]:
    probe = copy.deepcopy(model)
    made = {name for node in model.graph.node for name in node.output}
    outputs = {value.name for value in model.graph.output}
    wanted = dict.fromkeys(
        node.input[index]
        for node in model.graph.node
        for index in _SHAPED.get(node.op_type, ())
        if node.input[index] in made and node.input[index] not in outputs
    )
    probe.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in wanted)
    for value in probe.graph.output[len(outputs) :]:
        value.ClearField("type")
    write(probe, file)
    tap = _Tap(open_session(file), list(wanted))
    graph = GrowingGraph([tap], heads_dim=geometry(origin.parent))  # a session as far as it is used
    Subject(graph, rounding(model)).run(sizes)
    return tap.seen
