"""Somebody else's decoder made a decoder directory: what its files leave unsaid is taken from the original model."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from transformers import GenerationConfig, PreTrainedConfig

from bento_kv.contract.cache import KvSpec
from bento_kv.contract.files import check_plain, hash_files
from bento_kv.contract.manifest import Manifest, Source
from bento_kv.contract.versions import versions_of
from bento_kv.disk import scratch, write_whole
from bento_kv.errors import ExportError, UnsupportedArchitecture
from bento_kv.export.model import load_config, max_positions
from bento_kv.export.tokenizer import load_generation_config, load_tokenizer, token_ids, write_companions
from bento_kv.onnx_file import declared_inputs, declared_outputs, opsets, precision
from bento_kv.runtime.graph import Cache
from bento_kv.runtime.growing import GrowingGraph, geometry, graph_files
from bento_kv.runtime.interface import is_packed
from bento_kv.runtime.session import open_session
from bento_kv.source import ModelSource

_PACKAGES = ("transformers", "onnx", "onnxruntime", "numpy")
_PROMPT = 3  # tokens of a run that shows the vocabulary's size


def adopt(directory: Path, source: str, *, max_length: int | None = None) -> Manifest:
    """Write the manifest of a decoder with a growing cache, and the companions that it lacks, into its directory.

    Args:
        directory: has the graph or the pair of graphs; nothing that stands in it is changed.
        source: the model that it was exported from: a Hugging Face directory, a hub id, or `demo`.
        max_length: positions of a sequence; what the model was made for unless set.

    Raises:
        DecoderError: there is no graph, or not a causal decoder's.
        ExportError: the directory cannot be written, or the graph is of the in-place layout.
        IntegrityError: a file is a link, or no file.
        SourceError, UnsupportedArchitecture: as the export.
    """
    check_plain(directory)
    files = graph_files(directory)
    found = ModelSource.find(source)
    config = load_config(found)
    try:
        model = onnx.load(files[-1], format="protobuf", load_external_data=False)
    except (OSError, DecodeError) as error:
        raise ExportError(f"{files[-1]} is not a readable ONNX file: {error}") from error
    inputs = declared_inputs(model)
    if is_packed(inputs):
        raise ExportError(f"{directory} has an in-place decoder without its manifest.json: export it again")
    weights = precision(model)
    if weights != "fp32":
        raise ExportError(
            f"{files[-1]} has {weights} weights, and only fp32 decoders can be proven and served for now; "
            "`bento-kv doctor` judges it all the same"
        )
    sessions = [open_session(file) for file in files]
    graph = GrowingGraph(sessions, heads_dim=geometry(files[0].parent) or geometry(found.path))
    empty = graph.empty_cache(1)
    tokenizer = load_tokenizer(found)
    generation = load_generation_config(found, config)
    _complete(directory, found, tokenizer, generation)
    record = Manifest(
        source=Source(id=found.name, revision=found.revision, weights_sha256=found.weights_sha256()),
        architecture=(config.architectures or [config.model_type])[0],
        layout="growing",
        precision=weights,
        graphs=tuple(str(file.relative_to(directory)) for file in files),
        opset=opsets(model),
        ir_version=model.ir_version,
        inputs=tuple(inputs),
        outputs=tuple(declared_outputs(model)),
        layers=_geometry(empty),
        vocab_size=_vocab_size(graph, empty),
        max_length=max_length or _max_length(config),
        token_ids=token_ids(tokenizer, generation),
        files=hash_files(directory),
        versions=versions_of(_PACKAGES),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    record.write(directory)
    with suppress(OSError):  # a help for the next `verify`, no more
        found.write_origin(directory)
    return record


def _complete(directory: Path, source: ModelSource, tokenizer: Any, generation: GenerationConfig) -> None:
    """Tokenizer, chat template and configurations, where the exporter did not write them."""
    with scratch("adopt") as folder:
        write_companions(source, tokenizer, generation, folder)
        try:
            for file in sorted(folder.iterdir()):
                if not (directory / file.name).exists():
                    write_whole(directory / file.name, file.read_bytes())
        except OSError as error:
            raise ExportError(f"{directory} cannot be written: {error.strerror}") from error


def _max_length(config: PreTrainedConfig) -> int:
    try:
        return max_positions(config)
    except UnsupportedArchitecture as error:
        raise UnsupportedArchitecture(f"{error}; say how long a sequence may be with --max-length") from error


def _geometry(empty: Cache) -> tuple[KvSpec, ...]:
    return tuple(KvSpec(kv_heads=key.shape[1], head_dim=key.shape[3]) for key, _ in empty)


def _vocab_size(graph: GrowingGraph, empty: Cache) -> int:
    declared = graph.interface.logits.shape[-1]
    if isinstance(declared, int):
        return declared
    ids = np.zeros((1, _PROMPT), np.int64)
    return int(graph.run(ids, empty).logits.shape[-1])
