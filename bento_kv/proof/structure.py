"""What a graph computes, as a fingerprint that names, the order of nodes, unused parts and mere shapes do not change."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import onnx

# Operators that leave all elements in their order.
RESHAPES = {"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}


def fingerprint(graph: onnx.GraphProto, known: Mapping[str, str]) -> str:
    """Hex digest of the computation that leads from the graph's inputs to its outputs.

    Args:
        graph: its nodes in topological order, as ONNX has it.
        known: what stands behind each initializer: equal texts for equal tensors.
    """
    digests = {value.name: _digest("input", value.name) for value in graph.input}
    digests |= {name: _digest("tensor", content) for name, content in known.items()}
    found = _computed(graph, digests)
    return _digest(*(f"{value.name}={found.get(value.name)}" for value in sorted(graph.output, key=lambda v: v.name)))


def _computed(graph: onnx.GraphProto, outer: Mapping[str, str]) -> dict[str, str]:
    """Digests of all values of a graph, by name; of branches too, which read what stands around them."""
    digests = dict(outer)
    for node in graph.node:
        if node.op_type in RESHAPES:
            digests[node.output[0]] = digests.get(node.input[0], node.input[0])
            continue
        attributes = sorted(f"{a.name}:{_attribute(a, digests)}" for a in node.attribute)
        domain = "" if node.domain == "ai.onnx" else node.domain
        computed = _digest(domain, node.op_type, *attributes, *(digests.get(name, name) for name in node.input))
        digests |= {name: _digest(computed, str(index)) for index, name in enumerate(node.output)}
    return digests


def _attribute(attribute: onnx.AttributeProto, outer: Mapping[str, str]) -> str:
    if not attribute.HasField("g"):
        return str(attribute.SerializeToString(deterministic=True).hex())
    found = _computed(attribute.g, outer)
    return _digest(*(str(found.get(value.name)) for value in attribute.g.output))  # a node's outputs, by their order


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
