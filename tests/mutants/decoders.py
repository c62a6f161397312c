"""Healthy decoders: tiny models of several architectures, exported once, in every layout that is found in the wild."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import onnx

from tests import decoders, layouts
from tests.mutants.genai import genai_like

Write = Callable[[onnx.ModelProto, Path], object]


def _two_files(model: onnx.ModelProto, folder: Path) -> None:
    first, later = layouts.as_two_files(model)
    layouts.save(first, folder / "decoder_model.onnx")
    layouts.save(later, folder / "decoder_with_past_model.onnx")


def _as(change: Callable[[onnx.ModelProto], onnx.ModelProto], name: str = "model.onnx") -> Write:
    return lambda model, folder: layouts.save(change(model), folder / name)


def _other_names(model: onnx.ModelProto) -> onnx.ModelProto:
    return layouts.with_names(
        model,
        past="cache_in.{layer}.{side}",
        present="cache_out.{layer}.{side}",
        sides=("k", "v"),
        input_ids="tokens",
        attention_mask="padding_mask",
        logits="scores",
    )


# How a model in the common layout is written into a folder.
LAYOUTS: dict[str, Write] = {
    "common": _as(lambda model: model),
    "stacked": _as(layouts.as_stacked),
    "transposed keys": _as(layouts.as_transposed_keys),
    "time-major": _as(layouts.as_time_major),
    "two files": _two_files,
    "merged": _as(layouts.as_merged, "decoder_model_merged.onnx"),
    "external data": lambda model, folder: layouts.save_with_external_data(model, folder / "model.onnx"),
    "fp16": _as(layouts.as_fp16),
    "int32 ids": _as(layouts.as_int32_ids),
    "other names": _as(_other_names),
    "genai": _as(lambda model: model),
    "packed": _as(lambda model: model),
}


# Tracing takes time by the layer, and these are not operated on.
_ONE_LAYER = ("falcon", "gemma", "gpt_neox", "mistral", "opt")


class Decoders:
    """Base models by name, each exported when it is first asked for."""

    def __init__(self) -> None:
        self._models: dict[str, onnx.ModelProto] = {}

    def model(self, name: str) -> onnx.ModelProto:
        """A copy of the graph: of an architecture in the common layout, `packed`, or `genai`."""
        if name not in self._models:
            self._models[name] = self._read(name)
        return copy.deepcopy(self._models[name])

    def source(self, name: str) -> Path:
        """The torch model that it was exported from."""
        layers = {"num_hidden_layers": 1} if name in _ONE_LAYER else {}
        return decoders.source("llama" if name == "packed" else name, **layers)

    def _read(self, name: str) -> onnx.ModelProto:
        if name == "genai":
            return genai_like()
        if name == "packed":
            return onnx.load(decoders.exported(self.source(name)) / "model.onnx")
        return onnx.load(decoders.growing(self.source(name)))
