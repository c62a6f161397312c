"""IR version and operator set: what the installed runtime takes, and how a graph gets there."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import onnx
import onnxruntime as ort
from onnx import helper, version_converter
from onnx.external_data_helper import uses_external_data

from bento_kv.errors import first_line
from bento_kv.onnx_file import highest_ir_version, highest_opset
from bento_kv.repair.records import Change

_SMALL = 1024  # elements; what a conversion may need to read, such as axes


def lower_versions(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Change], list[Change]]:
    """The model in versions that the runtime takes; what was mended, what could not be."""
    mended, left = [], []
    if model.ir_version > highest_ir_version():
        mended.append(
            Change(
                "ir-version-unsupported",
                "ir_version",
                f"lowered from {model.ir_version} to {highest_ir_version()}; nothing that is computed changed",
            )
        )
        model = copy.deepcopy(model)
        model.ir_version = highest_ir_version()
    opset = opset_of(model)
    if opset > highest_opset():
        converted, change = _convert(model, highest_opset())
        if converted is None:
            left.append(change)
        else:
            model = converted
            mended.append(change)
    return model, mended, left


def opset_of(model: onnx.ModelProto) -> int:
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def _convert(model: onnx.ModelProto, target: int) -> tuple[onnx.ModelProto | None, Change]:
    opset = opset_of(model)
    if opset > onnx.defs.onnx_opset_version():
        return _restamp(model, target)
    try:
        with_values = _convert_light(model, target)
        onnx.checker.check_model(light(with_values)[0])
    except Exception as error:  # noqa: BLE001 - the converter's own, and a class that the checker does not export
        unknown = sorted(_newer(model, target))
        reason = f"{unknown[0]} came after opset {target}" if unknown else first_line(error)
        return None, Change(
            "opset-unsupported",
            f"opset {opset}",
            f"cannot be converted to {target}, the newest that onnxruntime {ort.__version__} takes: {reason}. Install a "
            f"newer onnxruntime, or export again with opset {target}",
        )
    text = f"converted from {opset} to {target} by onnx's version converter"
    return with_values, Change("opset-unsupported", f"opset {opset}", text)


def _restamp(model: onnx.ModelProto, target: int) -> tuple[onnx.ModelProto | None, Change]:
    """An opset that onnx itself does not know yet: its definitions cannot be read, but the nodes may all be older."""
    opset, lowered = opset_of(model), copy.deepcopy(model)
    for entry in lowered.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = target
    try:
        onnx.checker.check_model(light(lowered)[0])
    except Exception as error:  # noqa: BLE001 - a class that onnx does not export
        return None, Change(
            "opset-unsupported",
            f"opset {opset}",
            f"onnx {onnx.__version__} knows opsets up to {onnx.defs.onnx_opset_version()}, so it cannot convert this one, "
            f"and not all of its nodes are valid in {target}: {first_line(error)}. Install newer onnx and onnxruntime, or "
            f"export again with opset {target}",
        )
    return lowered, Change(
        "opset-unsupported",
        f"opset {opset}",
        f"declared as {target}: every node is valid in it as it stands. onnx {onnx.__version__} does not know {opset}, so "
        "that none of its operators means something else there is not proven; compare with a reference",
    )


def _newer(model: onnx.ModelProto, target: int) -> set[str]:
    """Operators of the graph that the target does not have."""
    operators = {node.op_type for node in model.graph.node if node.domain in ("", "ai.onnx")}
    return {name for name in operators if not onnx.defs.has(name, target, "")}


def _convert_light(model: onnx.ModelProto, target: int) -> onnx.ModelProto:
    """Convert without the weights, which the converter copies several times and which may lie in another file."""
    small, heavy = light(model)
    converted: onnx.ModelProto = version_converter.convert_version(small, target)
    names = {tensor.name for tensor in heavy}
    kept = [value for value in converted.graph.input if value.name not in names]
    del converted.graph.input[:]
    converted.graph.input.extend(kept)
    converted.graph.initializer.extend(heavy)
    for entry in model.opset_import:  # the converter drops what it does not know
        if entry.domain and all(other.domain != entry.domain for other in converted.opset_import):
            converted.opset_import.append(entry)
    converted.ir_version = model.ir_version
    converted.metadata_props.extend(model.metadata_props)
    return converted


def light(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """The model with its large weights as inputs, and these."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    heavy = [t for t in light.graph.initializer if uses_external_data(t) or _elements(t.dims) > _SMALL]
    inputs = {value.name for value in light.graph.input}
    light.graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        for tensor in heavy
        if tensor.name not in inputs
    )
    names = {tensor.name for tensor in heavy}
    kept = [tensor for tensor in light.graph.initializer if tensor.name not in names]
    copies = [copy.deepcopy(tensor) for tensor in heavy]
    del light.graph.initializer[:]
    light.graph.initializer.extend(kept)
    return light, copies


def _elements(dims: Iterable[int]) -> int:
    total = 1
    for size in dims:
        total *= size
    return total
