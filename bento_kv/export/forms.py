"""How the weights of each precision are stored, and what of it can be chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from bento_kv.contract.files import MODEL_FILE
from bento_kv.contract.precision import Precision
from bento_kv.contract.weight_options import NAMES, OptionValue, QuantizationOptions, options_of
from bento_kv.errors import ExportError
from bento_kv.export.graph.origins import Origins
from bento_kv.export.graph.projections import fold_transposes
from bento_kv.export.graph.quantized import use_blocks, use_columns
from bento_kv.export.graph.weights import Calibrate, Quantization, Weights

PREFILL_FILE = "prefill.onnx"

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Form:
    """Of a precision whose weights are quantized.

    Attributes:
        default: what is done unless asked otherwise.
        store: quantizes a graph with its weights; the graphs by file name, the one for prompts first.
    """

    default: Quantization
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
    "int8": Form(Quantization(reduce_range=False, rotate=True), _in_columns),
    "int4": Form(Quantization(reduce_range=True, rotate=True), _in_blocks),
}


def chosen(precision: Precision, asked: QuantizationOptions) -> Quantization | None:
    """How to store weights: as asked, and in all else as the precision has it; None of a precision of floats.

    Raises:
        ExportError: what is asked for does nothing.
    """
    asked.check(precision)
    form = FORMS.get(precision)
    if form is None:
        return None
    how = replace(form.default, **{name: value for name, value in asked.given.items() if name != "calibration"})
    if asked.calibration is not None and how.method != "gptq":
        raise ExportError(f"calibration does nothing with method {how.method}; gptq reads a text")
    return how


def in_force(precision: Precision, asked: QuantizationOptions, how: Quantization | None) -> dict[str, OptionValue]:
    """The options by name, as the manifest has them; of a text to calibrate on its name alone."""
    taken = {} if how is None else {name: getattr(how, name) for name in NAMES if name != "calibration"}
    if asked.calibration is not None:
        taken["calibration"] = asked.calibration.name
    return {name: value for name, value in taken.items() if name in options_of(precision)}


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
    how: Quantization | None,
    origins: Origins,
    calibrate: Calibrate,
    progress: Progress,
) -> Quantized:
    """The graphs of a precision."""
    form = FORMS.get(precision)
    if form is None or how is None:
        return Quantized({MODEL_FILE: graph}, {}, 0)
    fold_transposes(graph)
    weights = Weights.find(graph, origins)
    count = 0
    if how.method == "gptq" and "method" in options_of(precision):
        progress("calibrating on text")
        count = weights.calibrate(how, origins, calibrate)
    progress(f"quantizing to {precision}")
    return Quantized(form.store(graph, weights, how), weights.origins, count)
