"""How the weights of each precision are stored, and what of it can be chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import onnx_ir as ir

from bento_kv.contract.files import MODEL_FILE
from bento_kv.contract.precision import Precision
from bento_kv.errors import ExportError
from bento_kv.export.graph.origins import Origins
from bento_kv.export.graph.projections import fold_transposes
from bento_kv.export.graph.quantized import use_blocks, use_columns
from bento_kv.export.graph.weights import Calibrate, Quantization, Weights

PREFILL_FILE = "prefill.onnx"

Progress = Callable[[str], None]
_EVERYTHING = frozenset(field.name for field in fields(Quantization))


@dataclass(frozen=True, slots=True)
class Form:
    """Of a precision whose weights are quantized.

    Attributes:
        default: what is done unless asked otherwise.
        choices: what of it can be chosen.
        store: quantizes a graph with its weights; the graphs by file name, the one for prompts first.
    """

    default: Quantization
    choices: frozenset[str]
    store: Callable[[ir.Model, Weights, Quantization], dict[str, ir.Model]]


def _in_columns(graph: ir.Model, weights: Weights, how: Quantization) -> dict[str, ir.Model]:
    use_columns(graph, weights, how)
    return {MODEL_FILE: graph}


def _in_blocks(graph: ir.Model, weights: Weights, how: Quantization) -> dict[str, ir.Model]:
    """Blocks read the least for few tokens, columns compute fastest for the many of a prompt."""
    prefill = graph.clone()
    use_columns(prefill, weights, how)
    use_blocks(graph, weights, how)
    return {PREFILL_FILE: prefill, MODEL_FILE: graph}


FORMS: Mapping[Precision, Form] = {
    "int8": Form(Quantization(reduce_range=False, rotate=True), frozenset({"reduce_range", "rotate"}), _in_columns),
    "int4": Form(Quantization(reduce_range=True, rotate=False), _EVERYTHING, _in_blocks),
}


def chosen(precision: Precision, asked: Quantization | None) -> Quantization:
    """How to store weights: as asked, if that can be chosen, else by the precision's default.

    Raises:
        ExportError: it cannot be chosen for this precision.
    """
    form = FORMS.get(precision)
    if asked is None:
        return form.default if form else Quantization()
    usual = Quantization()
    changed = {name for name in _EVERYTHING if getattr(asked, name) != getattr(usual, name)}
    if form and changed <= form.choices:
        left_open = {name: getattr(form.default, name) for name in _EVERYTHING if getattr(asked, name) is None}
        return replace(asked, **left_open)
    free = ", ".join(name for name, each in FORMS.items() if each.choices == _EVERYTHING)
    but = f", where {', '.join(sorted(form.choices))} alone can" if form else ""
    raise ExportError(f"how weights are quantized can be chosen for precision {free}, not for {precision}{but}")


@dataclass(frozen=True, slots=True)
class Quantized:
    """Graphs by file name, the one for prompts first.

    Attributes:
        origins: what quantized weights are made of, as the manifest has it.
        calibrated: weights that were rounded with a look at their inputs.
    """

    graphs: dict[str, ir.Model]
    origins: dict[str, tuple[str, ...]]
    calibrated: int


def quantized(
    graph: ir.Model,
    precision: Precision,
    how: Quantization,
    origins: Origins,
    calibrate: Calibrate,
    progress: Progress,
) -> Quantized:
    """The graphs of a precision."""
    form = FORMS.get(precision)
    if form is None:
        return Quantized({MODEL_FILE: graph}, {}, 0)
    fold_transposes(graph)
    weights = Weights.find(graph, origins)
    count = 0
    if how.method == "gptq" and form.choices == _EVERYTHING:
        progress("calibrating on text")
        count = weights.calibrate(how, origins, calibrate)
    progress(f"quantizing to {precision}")
    return Quantized(form.store(graph, weights, how), weights.origins, count)
