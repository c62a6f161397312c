"""Opening anybody's decoder: what keeps the runtime from loading it, and what there is to drive if it does."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from bento_kv.contract.files import MANIFEST_FILE
from bento_kv.contract.graph_io import TensorSpec
from bento_kv.doctor.export.unloadable import is_brief, load_failed, unreadable
from bento_kv.doctor.records import Finding
from bento_kv.errors import BentoKVError, DecoderError, GraphLimitError
from bento_kv.onnx_file import (
    declared_inputs,
    declared_outputs,
    embedding_rows,
    highest_ir_version,
    highest_opset,
    nested_graphs,
)
from bento_kv.runtime.carried import CarriedGraph
from bento_kv.runtime.graph import CachedGraph
from bento_kv.runtime.growing import GrowingGraph, geometry, graph_files
from bento_kv.runtime.interface import Interface, recognize
from bento_kv.runtime.packed import PackedGraph
from bento_kv.runtime.session import open_session


@dataclass(slots=True)
class Opened:
    """A decoder, as far as it could be opened.

    Attributes:
        files: its graphs, the one that takes a past last.
        folder: where the configurations are that tell what the graphs do not.
        models: of the files, without their weights.
        interface: of the last graph; None where it cannot be told.
        sessions: of the files, where the runtime loads them.
        graph: to drive by position; None where there is none, or its cache is not of keys and values by position.
        findings: what is in the way.
    """

    files: tuple[Path, ...]
    folder: Path
    models: list[onnx.ModelProto] = field(default_factory=list)
    interface: Interface | None = None
    sessions: list[ort.InferenceSession] = field(default_factory=list)
    graph: CachedGraph | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def one_token_steps(self) -> bool:
        """Another graph, or branch, takes the prompt: this one may be made for a token a step."""
        return len(self.files) > 1 or (self.interface is not None and self.interface.branch is not None)

    @property
    def mendable(self) -> bool:
        """Whether `repair` has anything to do with it: our own layout is exported anew instead."""
        return self.interface is None or not self.interface.packed

    @property
    def in_place_directory(self) -> Path | None:
        """The decoder directory that serves it, where it is one of the in-place layout with its manifest."""
        return self.folder if not self.mendable and (self.folder / MANIFEST_FILE).is_file() else None

    @property
    def present_names(self) -> list[tuple[str, str]]:
        """Keys' and values' outputs by layer; the second is empty where one tensor has both side by side."""
        names: dict[int, dict[str, str]] = {}
        for pair in self.interface.caches if self.interface else ():
            if pair.present is None:
                continue
            sides = names.setdefault(pair.layer, {})
            if pair.side == "both":
                sides["key"], sides["value"] = pair.present.name, pair.present.name if "stack" in pair.axes else ""
            else:
                sides[pair.side] = pair.present.name
        return [(sides.get("key", ""), sides.get("value", "")) for _, sides in sorted(names.items())]

    @property
    def inputs(self) -> list[TensorSpec]:
        return [] if not self.models else declared_inputs(self.models[-1])


def open_decoder_file(target: Path, *, threads: int | None = None) -> Opened:
    """Open what a user names: a file, or a directory.

    Raises:
        DecoderError: there is no graph, or it is not a causal decoder's.
    """
    files = graph_files(target)
    return open_graphs(files, files[0].parent, threads=threads)


def open_graphs(files: tuple[Path, ...], folder: Path, *, threads: int | None = None) -> Opened:
    """Open the graphs of one decoder, wherever they were written.

    Args:
        files: the one that takes a past last.
        folder: where the decoder's configurations are.
        threads: of a step.

    Raises:
        DecoderError: they are not a causal decoder's.
    """
    opened = Opened(files, folder)
    for file in files:
        model = _parse(file)
        if isinstance(model, Finding):
            opened.findings.append(model)
            return opened
        opened.models.append(model)
        opened.findings += [*_versions(model, file), *_external_data(model, file)]
    model = opened.models[-1]
    opened.interface = recognize(opened.inputs, declared_outputs(model))
    if opened.findings:
        return opened
    sessions = []
    for file in opened.files:
        try:
            sessions.append(open_session(file, threads=threads))
        except GraphLimitError:
            raise
        except BentoKVError as error:
            opened.findings.append(load_failed(file, str(error), opened.models[opened.files.index(file)]))
            return opened
    if brief := [spec for spec in (*opened.inputs, *declared_outputs(model)) if is_brief(spec.dtype)]:
        reason = f"{brief[0].name} is {brief[0].dtype}, which numpy has no type for, so that it is not fed or read here"
        opened.findings.append(load_failed(opened.files[-1], reason, model))
        return opened
    opened.sessions = sessions
    if opened.interface.packed:
        opened.graph = PackedGraph(sessions[0], opened.inputs)
    elif not opened.interface.foreign:
        opened.graph = GrowingGraph(sessions, heads_dim=geometry(opened.folder))
    return opened


def carried_graph(opened: Opened) -> CarriedGraph:
    """The decoder, to be driven by nothing but what its steps return.

    Raises:
        DecoderError: it is in two graphs, or nothing says how large something is that is carried.
    """
    if len(opened.sessions) != 1 or opened.interface is None:
        raise DecoderError(f"{opened.folder} keeps its cache in a way that is judged in one graph only, and has two")
    return CarriedGraph(opened.sessions[0], opened.interface, heads_dim=geometry(opened.folder))


def _parse(file: Path) -> onnx.ModelProto | Finding:
    try:
        model = onnx.load(file, format="protobuf", load_external_data=False)
    except OSError as error:
        raise DecoderError(f"{file} cannot be read: {error.strerror}") from error
    except DecodeError as error:
        if file.suffix != ".onnx":
            raise DecoderError(f"{file} is not an ONNX file: {error}") from error
        return unreadable(file, f"it is not an ONNX file, or was cut off: {error}")
    return model if model.graph.node else unreadable(file, "it is empty, or not an ONNX file")


def _versions(model: onnx.ModelProto, file: Path) -> list[Finding]:
    findings = []
    if model.ir_version > highest_ir_version():
        findings.append(
            Finding(
                id="ir-version-unsupported",
                where=f"{file.name}, ir_version {model.ir_version}",
                explain=f"The file has IR version {model.ir_version}; onnxruntime {ort.__version__} takes up to "
                f"{highest_ir_version()}. Nothing runs until that is changed; the numbers inside may well be right.",
                fix=f"`bento-kv repair {file.name} -o REPAIRED` lowers it; or install a newer onnxruntime.",
            )
        )
    for entry in model.opset_import:
        if not entry.domain and entry.version > highest_opset():
            findings.append(
                Finding(
                    id="opset-unsupported",
                    where=f"{file.name}, opset {entry.version}",
                    explain=f"The graph is written in opset {entry.version}; onnxruntime {ort.__version__} takes up to "
                    f"{highest_opset()}.",
                    fix=f"`bento-kv repair {file.name} -o REPAIRED` converts it; or export with opset={highest_opset()} or "
                    "lower; or install a newer onnxruntime.",
                )
            )
    return findings


def _external_data(model: onnx.ModelProto, file: Path) -> list[Finding]:
    """Weights that are said to lie in a file beside the graph, and do not."""
    missing: dict[str, list[str]] = {}
    ends: dict[str, int] = {}
    for graph in nested_graphs(model.graph):
        for tensor in graph.initializer:
            if not uses_external_data(tensor):
                continue
            info = ExternalDataInfo(tensor)
            end = (info.offset or 0) + (info.length or 0)
            if _size(file.parent / info.location) < max(end, 0):
                missing.setdefault(info.location, []).append(tensor.name)
                ends[info.location] = max(end, ends.get(info.location, 0))
    return [
        Finding(
            id="external-data-missing",
            where=f"{file.name}, weights of {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else ""),
            explain=f"{location} {_state(file.parent / location, ends[location])}, where {file.name} keeps the data of "
            f"{len(names)} tensors.",
            fix=f"Put {location} into the folder of {file.name}, whole and under that name; a copy of the .onnx file "
            "alone is not the model.",
        )
        for location, names in missing.items()
    ]


def _size(file: Path) -> int:
    """In bytes; -1 where there is no such file."""
    return file.stat().st_size if file.is_file() else -1


def _state(file: Path, end: int) -> str:
    size = _size(file)
    return "is missing" if size < 0 else f"has {size} bytes, and the graph reads up to {end}"


def open_cached(target: Path, *, threads: int | None = None) -> tuple[CachedGraph, int]:
    """A decoder that can be stepped with its cache, and its vocabulary's size.

    Raises:
        DecoderError: it does not load, has no cache, or does not say its vocabulary's size.
    """
    opened = open_decoder_file(target, threads=threads)
    interface = opened.interface
    reason = opened.findings[0].explain if opened.findings else ""
    if interface is not None and not (interface.has_past and interface.has_present):
        reason = "The graph has no cache to pass on."
    if interface is not None and interface.foreign:
        reason = f"It has {interface.foreign}, of which no position can be taken out."
    if opened.graph is None or interface is None or reason:
        raise DecoderError(f"{target} cannot be stepped: {reason} `bento-kv doctor {target}` says what to do.")
    vocab_size = measured_vocab_size(opened)
    if vocab_size is None:
        raise DecoderError(f"{target} runs at no length: `bento-kv doctor {target}` says what to do.")
    return opened.graph, vocab_size


def measured_vocab_size(opened: Opened) -> int | None:
    """Token ids are below it: the width of the logits, or the rows of the table that ids are looked up in if that has fewer.

    None if no run ends well that would show the width.
    """
    width = _logits_width(opened)
    rows = embedding_rows(opened.models[-1], opened.interface.ids.name) if opened.models and opened.interface else None
    return width if width is None or rows is None else min(width, rows)


def _logits_width(opened: Opened) -> int | None:
    """As declared, or as it comes out of a run; None if no run ends well."""
    declared = opened.interface.logits.shape[-1] if opened.interface else "?"
    if isinstance(declared, int):
        return declared
    if opened.graph is None:
        return None
    for tokens in (7, 3, 2, 1):
        try:
            output = opened.graph.run(np.zeros((1, tokens), np.int64), opened.graph.empty_cache(1))
        except DecoderError:
            continue  # another length may do; if none does, the sizes that the graph takes are a finding of their own
        return int(output.logits.shape[-1])
    return None
