"""What was diagnosed, in words and numbers."""

from __future__ import annotations

from pathlib import Path

from bento_kv.doctor.export.loading import Opened
from bento_kv.doctor.export.unloadable import brief_types
from bento_kv.doctor.records import Target
from bento_kv.onnx_file import opsets, precision


def describe(target: Path, opened: Opened) -> Target:
    """The target as the user named it, and what its files say of themselves."""
    interface = opened.interface
    model = opened.models[-1] if opened.models else None
    pair = interface.caches[0] if interface is not None and interface.caches else None
    spec = (pair.past or pair.present) if pair else None
    return Target(
        path=str(target),
        graphs=tuple(file.name for file in opened.files),
        layout=_layout(opened),
        cache=f"[{', '.join(map(str, spec.shape))}] {spec.dtype}" if spec else "",
        layers=interface.layers if interface else 0,
        precision=(brief_types(model) or precision(model)) if model else "",
        opset=opsets(model) if model else {},
        ir_version=model.ir_version if model else None,
    )


def _layout(opened: Opened) -> str:
    interface = opened.interface
    if interface is None:
        return "unknown"
    if interface.packed:
        return "in-place, packed"
    if interface.foreign:
        return interface.foreign
    if not (interface.has_past or interface.has_present):
        return "without a cache"
    axes = {pair.axes for pair in interface.caches}
    traits = ["growing"]
    if len(opened.files) > 1:
        traits.append("in two graphs")
    if interface.branch is not None:
        traits.append("two graphs merged into one")
    if any("stack" in own for own in axes):
        traits.append("keys and values stacked")
    elif any(pair.side == "both" for pair in interface.caches):
        traits.append("keys and values in one tensor")
    if any(own[-1] == "time" for own in axes):
        traits.append("keys transposed")
    if any(own[:2] == ("rows", "time") and "heads" in own for own in axes):
        traits.append("time before heads")
    operators = {node.op_type for node in opened.models[-1].graph.node} if opened.models else set()
    if "GroupQueryAttention" in operators:
        traits.append("GroupQueryAttention")
    return ", ".join(traits)
