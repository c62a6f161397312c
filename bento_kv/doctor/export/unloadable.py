"""Why the runtime does not load a file, and what leads out of it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import onnx

from bento_kv.doctor.records import Finding
from bento_kv.onnx_file import element_types

# Types that ONNX has and the kernels of the runtime's CPU provider have not, but for a few that only move or cast them.
_NOT_COMPUTED = re.compile("bfloat16|float8|float6|float4")
_NO_KERNEL = re.compile(r"Could not find an implementation for (\w+)\(\d+\)")
_NO_OPERATOR = re.compile(r"(\S+)\(-?\d+\) is not a registered function/op")


def load_failed(file: Path, reason: str, model: onnx.ModelProto) -> Finding:
    """The runtime read the file and refused it.

    Args:
        file: that was refused.
        reason: in the runtime's words.
        model: the file without its weights.
    """
    types = brief_types(model)
    kernel, operator = _NO_KERNEL.search(reason), _NO_OPERATOR.search(reason)
    if types:
        of = f", none for {kernel[1]}" if kernel else ""
        why = f"The graph computes in {types}, for which the runtime's CPU provider has hardly any kernels{of}."
        fix = f"Export in float32 or float16: {_anew(file)} does the former, behind the same inputs and outputs."
    elif kernel is not None:
        why = f"The runtime's CPU provider has no {kernel[1]} for the element types that the graph gives it."
        fix = f"Export again in float32, with int64 ids and mask: {_anew(file)}."
    elif operator is not None:
        why = f"The operator {operator[1]} is in none of the operator sets that the runtime has."
        fix = f"Export without operators of one's own, {_anew(file)}, or install the runtime that has this one."
    else:
        why = "The runtime refuses what the file says."
        fix = f"Export again for this runtime: {_anew(file)}. If the file was copied, compare the copy with it first."
    return Finding(id="load-failed", where=file.name, explain=f"{why} Reported: {reason}", fix=fix)


def unreadable(file: Path, reason: str) -> Finding:
    """What is no ONNX file, or a part of one."""
    fix = "Copy the file again, whole, from where it was exported; or export again."
    return Finding(id="load-failed", where=file.name, explain=f"The runtime does not load it: {reason}", fix=fix)


def brief_types(model: onnx.ModelProto) -> str:
    """The element types of a graph that are too brief for the runtime's CPU provider; empty if there are none."""
    return ", ".join(sorted(name for name in element_types(model) if is_brief(name)))


def is_brief(dtype: str) -> bool:
    """Whether an element type, as the runtime or ONNX calls it in lower case, is one of those."""
    return _NOT_COMPUTED.match(dtype) is not None


def _anew(file: Path) -> str:
    name = shlex.quote(file.name)
    return f"`bento-kv repair {name} -o REPAIRED --reference SOURCE`"
