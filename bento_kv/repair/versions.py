"""IR version and operator set: what the installed runtime takes, and how a graph gets there."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import version_converter

from bento_kv.errors import first_line
from bento_kv.onnx_file import highest_ir_version, highest_opset
from bento_kv.repair.records import Change
from bento_kv.repair.weights import check, without_weights


def lower_versions(model: ir.Model) -> tuple[list[Change], list[Change]]:
    """Bring a model to versions that the runtime takes, in place; what was mended, what could not be."""
    mended: list[Change] = []
    left: list[Change] = []
    if (model.ir_version or 0) > highest_ir_version():
        mended.append(
            Change(
                "ir-version-unsupported",
                "ir_version",
                f"lowered from {model.ir_version} to {highest_ir_version()}; nothing that is computed changed",
            )
        )
        model.ir_version = highest_ir_version()
    opset, target = model.opset_imports.get("", 0), highest_opset()
    if opset > target:
        known = opset <= onnx.defs.onnx_opset_version()
        problem = _convert(model, target) if known else _restamp(model, target)
        text = problem or (_CONVERTED if known else _RESTAMPED).format(
            opset=opset, target=target, onnx=onnx.__version__
        )
        (left if problem else mended).append(Change("opset-unsupported", f"opset {opset}", text))
    return mended, left


_CONVERTED = "converted from {opset} to {target} by onnx's version converter"
_RESTAMPED = (
    "declared as {target}: every node is valid in it as it stands. onnx {onnx} does not know {opset}, so "
    "that none of its operators means something else there is not proven; compare with a reference"
)


def _convert(model: ir.Model, target: int) -> str:
    """Convert the graph in place; or say why it cannot be."""
    try:
        converted = _converted(model, target)
        check(ir.Model(converted, ir_version=model.ir_version or target))
    except Exception as error:  # noqa: BLE001 - the converter's own, and a class that the checker does not export
        unknown = sorted(_newer(model, target))
        reason = f"{unknown[0]} came after opset {target}" if unknown else first_line(error)
        return (
            f"cannot be converted to {target}, the newest that onnxruntime {ort.__version__} takes: {reason}. Install a "
            f"newer onnxruntime, or export again with opset {target}: give the model as --reference"
        )
    model.graph = converted
    return ""


def _restamp(model: ir.Model, target: int) -> str:
    """An opset that onnx itself does not know yet: its definitions cannot be read, but the nodes may all be older."""
    opset = model.opset_imports[""]
    model.opset_imports[""] = target
    try:
        check(model)
    except Exception as error:  # noqa: BLE001 - a class that onnx does not export
        model.opset_imports[""] = opset
        return (
            f"onnx {onnx.__version__} knows opsets up to {onnx.defs.onnx_opset_version()}, so it cannot convert this one, "
            f"and not all of its nodes are valid in {target}: {first_line(error)}. Install newer onnx and onnxruntime, or "
            f"export again with opset {target}: give the model as --reference"
        )
    return ""


def _newer(model: ir.Model, target: int) -> set[str]:
    """Operators of the graph that the target does not have."""
    operators = {node.op_type for node in model.graph.all_nodes() if node.domain in ("", "ai.onnx")}
    return {name for name in operators if not onnx.defs.has(name, target, "")}


def _converted(model: ir.Model, target: int) -> ir.Graph:
    """The graph converted; without the weights, which the converter copies several times and which may lie elsewhere."""
    light, weights = without_weights(model)
    graph = ir.from_proto(version_converter.convert_version(ir.to_proto(light), target)).graph
    for value in [value for value in graph.inputs if value.name in weights]:
        graph.inputs.remove(value)
        value.const_value = weights[value.name or ""]
        graph.register_initializer(value)
    for domain, version in model.opset_imports.items():  # the converter drops what it does not know
        graph.opset_imports.setdefault(domain, version)
    return graph
