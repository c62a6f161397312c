"""Graphs and their weights as files: one file of weights for all graphs of a directory, equal ones stored once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
import onnx_ir as ir

# Small constants stay in the graph, where shape inference sees them.
_INLINE = 1024
# So that a large tensor can be mapped into memory as it is.
_PAGE = 4096


def save(graphs: Mapping[str, ir.Model], directory: Path, data_file: str) -> None:
    """Write graphs by file name, and their weights into one file beside them."""
    with (directory / data_file).open("wb") as data:
        store = _Store(directory, data_file, data)
        for graph in graphs.values():
            for value in graph.graph.initializers.values():
                tensor = value.const_value
                if tensor is not None and tensor.nbytes > _INLINE:
                    value.const_value = store.put(str(value.name), tensor)
    for name, graph in graphs.items():
        ir.save(graph, directory / name)


class _Store:
    """The file of weights while it is written."""

    def __init__(self, directory: Path, name: str, data: IO[bytes]) -> None:
        self._directory = directory
        self._name = name
        self._data = data
        self._places: dict[bytes, int] = {}

    def put(self, name: str, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        """A tensor's bytes, where they are already or at the end; what is returned refers to them."""
        array = np.ascontiguousarray(tensor.numpy())
        content = array.reshape(-1).view(np.uint8).data
        digest = hashlib.blake2b(content, digest_size=16).digest()
        offset = self._places.get(digest)
        if offset is None:
            self._data.write(bytes(-self._data.tell() % _PAGE))
            offset = self._places[digest] = self._data.tell()
            self._data.write(content)
        return ir.ExternalTensor(
            self._name,
            offset,
            array.nbytes,
            tensor.dtype,
            shape=ir.Shape(array.shape),
            name=name,
            base_dir=self._directory,
        )
