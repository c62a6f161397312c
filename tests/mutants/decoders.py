"""Healthy decoders: tiny models of several architectures, exported once, in every layout that is found in the wild."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from pathlib import Path

import onnx

from tests import layouts
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
    """Base models by name, each exported when it is first asked for.

    Args:
        directory: where they are kept; several processes may share it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._models: dict[str, onnx.ModelProto] = {}

    def model(self, name: str) -> onnx.ModelProto:
        """A copy of the graph: of an architecture in the common layout, `packed`, or `genai`."""
        if name not in self._models:
            self._models[name] = genai_like() if name == "genai" else onnx.load(self._exported(name))
        return copy.deepcopy(self._models[name])

    def source(self, name: str) -> Path:
        """The torch model that it was exported from."""
        self._exported(name)
        return self._directory / name / "source"

    def _exported(self, name: str) -> Path:
        folder = self._directory / name
        file, done, failed = folder / "decoder" / "model.onnx", folder / "done", folder / "failed"
        if _first(self._directory / f"{name}.lock"):
            folder.mkdir()
            try:
                _export(name, folder, file)
            except BaseException:
                failed.touch()  # or the others would wait for ever
                raise
            done.touch()
        while not done.exists():
            if failed.exists():
                raise RuntimeError(f"the export of {name} failed in another process")
            time.sleep(0.1)
        return file


def _first(lock: Path) -> bool:
    """Whether nobody else has begun."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _export(name: str, folder: Path, file: Path) -> None:
    from bento_kv.export.exporter import export
    from bento_kv.export.growing import export_growing
    from tests import zoo
    from tests.export.test_growing import OWN

    zoo.CONFIGS.update({key: value for key, value in OWN.items() if key not in zoo.CONFIGS})
    layers = {"num_hidden_layers": 1} if name in _ONE_LAYER else {}
    source = zoo.save_model(folder / "source", "llama" if name == "packed" else name, **layers)
    if name == "packed":
        export(str(source), file.parent)
        return
    file.parent.mkdir()
    export_growing(str(source), file)
