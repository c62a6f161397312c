"""Faults put into decoder directories on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from bento_kv.contract.files import MANIFEST_FILE, MODEL_FILE, hash_files
from bento_kv.onnx_file import nested_graphs


def change_graph(
    directory: Path, change: Callable[[onnx.ModelProto], None], *, manifest: dict[str, Any] | None
) -> None:
    """Change the graph. With `manifest` the manifest is brought in line, as if the fault had been exported.

    Args:
        directory: of the decoder.
        change: changes the model in place.
        manifest: fields of the manifest to replace besides the hashes; None leaves the manifest as it was.
    """
    model = onnx.load(directory / MODEL_FILE, load_external_data=False)
    change(model)
    (directory / MODEL_FILE).write_bytes(model.SerializeToString())
    if manifest is not None:
        path = directory / MANIFEST_FILE
        document = json.loads(path.read_text())
        document["files"] = hash_files(directory)
        document.update(manifest)
        path.write_text(json.dumps(document))


def attention_nodes(model: onnx.ModelProto, layer: int | None = None) -> list[onnx.NodeProto]:
    """The attention of every layer, or of one, in each form that the graph has of it."""
    nodes = [
        node for graph in nested_graphs(model.graph) for node in graph.node if node.op_type == "GroupQueryAttention"
    ]
    return [node for node in nodes if layer is None or node.input[3] == f"past_key_values.{layer}.key"]


def set_attention(model: onnx.ModelProto, layer: int, name: str, value: Any) -> None:
    """An attribute of a layer's attention, in each form."""
    for node in attention_nodes(model, layer):
        set_attribute(node, name, value)


def set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])


def flip_weight_byte(directory: Path) -> None:
    """One bit of one weight."""
    path = directory / "model.onnx.data"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
