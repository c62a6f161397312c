"""Nodes put behind a decoder's logits, and files written of what comes of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import onnx

Change = Callable[[onnx.ModelProto], None]


def behind_logits(model: onnx.ModelProto, *nodes: onnx.NodeProto) -> None:
    """Nodes from `inner` to `logits`, where the model gives its logits as `inner`."""
    for node in model.graph.node:
        node.output[:] = ["inner" if name == "logits" else name for name in node.output]
        node.input[:] = ["inner" if name == "logits" else name for name in node.input]
    model.graph.node.extend(nodes)


def saved(model: onnx.ModelProto, change: Change, folder: Path) -> Path:
    changed, file = copy.deepcopy(model), folder / "model.onnx"
    change(changed)
    onnx.save(changed, file)
    return file
