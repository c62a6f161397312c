"""Export: from a model source to a decoder directory, whole or not at all."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import onnx
import onnx_ir as ir

from bento_kv.contract.files import DATA_FILE, MANIFEST_FILE, hash_files
from bento_kv.contract.graph_io import TensorSpec
from bento_kv.contract.manifest import Manifest, Source, padding_positions
from bento_kv.contract.precision import CACHE_ELEMENTS, EXPORTED, KvCache, Precision
from bento_kv.contract.quantization import BlockWeights
from bento_kv.contract.rotation import Rotated
from bento_kv.contract.versions import versions_of
from bento_kv.contract.weight_options import QuantizationOptions
from bento_kv.disk import folder_beside, put, replace
from bento_kv.errors import ExportError
from bento_kv.export.calibrate import calibrated_blocks
from bento_kv.export.calibration_text import calibration_sequences
from bento_kv.export.forms import FORMS, chosen, in_force, quantized
from bento_kv.export.graph import clean_up, optimize
from bento_kv.export.graph.cache import quantize_cache
from bento_kv.export.graph.grouped import group_queries
from bento_kv.export.graph.origins import Origins
from bento_kv.export.graph.weights import Quantization, Quantize
from bento_kv.export.kv_scales import cache_scales
from bento_kv.export.model import Survey, fix_rotary, load_config, load_model, survey
from bento_kv.export.storage import save
from bento_kv.export.tokenizer import load_generation_config, load_tokenizer, token_ids, write_companions
from bento_kv.export.tracing import to_onnx
from bento_kv.source import ModelSource

DEFAULT_OPSET = 23
MIN_OPSET = 23  # torch's exporter writes RMSNormalization and RotaryEmbedding, which came with it
MIN_LENGTH = 32  # shorter ones leave the proof nothing to cut into steps
_PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "numpy")

Progress = Callable[[str], None]


def export(
    source: str,
    directory: Path,
    *,
    precision: str = "fp32",
    quantization: QuantizationOptions | None = None,
    kv_cache: str = "fp32",
    max_length: int | None = None,
    opset: int = DEFAULT_OPSET,
    tried: Mapping[str, tuple[str, ...]] | None = None,
    force: bool = False,
    progress: Progress = lambda _: None,
) -> Manifest:
    """Write a decoder directory.

    Args:
        source: a Hugging Face model directory, a hub id, or `demo`.
        directory: where to; it appears when it is complete.
        precision: of the weights: `fp32`; `int8`, one graph, which computes fastest for many rows; `int4`, a graph of
            int4 weights that reads the least for few rows, and one of int8 weights for prompts.
        quantization: how `int4` and `int8` store their weights; what is left open is as the precision has it.
        kv_cache: element type of the cache, `fp32` or `int8`: a quarter of the memory, less to read when decoding, more
            to compute in prompts.
        max_length: positions of a slot; the model's own limit unless set.
        opset: of the graph's standard operators.
        tried: for the manifest: precisions that were tried before, and what of their proofs failed.
        force: replace what stands at `directory`.
        progress: told what is being done.

    Raises:
        SourceError: the model cannot be found or read.
        ExportError: it cannot be exported as asked.
    """
    known = _one_of("precision", precision, EXPORTED)
    elements = _one_of("kv_cache", kv_cache, tuple(CACHE_ELEMENTS))
    asked = quantization or QuantizationOptions()
    how = chosen(known, asked)
    _check_opset(opset)
    asked.calibration_sha256()  # told early, if it cannot be read
    check_target(directory, force=force)
    progress(f"reading {source}")
    read = _Read.of(source, progress)
    length = _length(read.source, read.facts, max_length)
    with staged(directory, force=force) as staging:
        made = _graphs(read, known, elements, how, length, opset, asked.calibration, progress)
        progress("writing weights")
        save(made.graphs, staging, DATA_FILE)
        write_companions(read.source, read.tokenizer, read.generation, staging)
        last = list(made.graphs.values())[-1]
        record = Manifest(
            source=read.origin(),
            architecture=type(read.model).__name__,
            layout="in-place",
            precision=known,
            kv_cache=elements,
            graphs=tuple(made.graphs),
            opset={domain or "ai.onnx": version for domain, version in last.opset_imports.items()},
            ir_version=last.ir_version,
            inputs=tuple(_spec(value) for value in last.graph.inputs),
            outputs=tuple(_spec(value) for value in last.graph.outputs),
            layers=read.facts.layers,
            vocab_size=read.facts.vocab_size,
            max_length=length,
            token_ids=token_ids(read.tokenizer, read.generation),
            files=hash_files(staging),
            versions=versions_of(_PACKAGES),
            passes=made.passes,
            weights=made.weights,
            rotations=made.rotations,
            quantization=in_force(known, asked, how),
            tried=dict(tried or {}),
            reduce_range=how is not None and bool(made.weights) and bool(how.reduce_range),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        record.write(staging)
        read.source.write_origin(staging)
    return record


@dataclass(frozen=True, slots=True)
class _Read:
    """A model source, read."""

    source: ModelSource
    tokenizer: Any
    generation: Any
    model: Any
    facts: Survey

    @classmethod
    def of(cls, source: str, progress: Progress) -> _Read:
        found = ModelSource.find(source)
        config = load_config(found)
        tokenizer = load_tokenizer(found)
        generation = load_generation_config(found, config)
        model = load_model(found, config, progress)
        facts = survey(model)
        fix_rotary(model)
        return cls(found, tokenizer, generation, model, facts)

    def origin(self) -> Source:
        found = self.source
        return Source(id=found.name, revision=found.revision, weights_sha256=found.weights_sha256())


@dataclass(frozen=True, slots=True)
class _Made:
    """The graphs by file name, the one for prompts first; see the manifest for the rest."""

    graphs: dict[str, ir.Model]
    weights: dict[str, tuple[str, ...]]
    passes: dict[str, int]
    rotations: dict[str, Rotated]


def _graphs(
    read: _Read,
    precision: Precision,
    kv_cache: KvCache,
    how: Quantization | None,
    length: int,
    opset: int,
    calibration: Path | None,
    progress: Progress,
) -> _Made:
    """Trace the model and make of it what is stored."""
    model, facts = read.model, read.facts
    progress(f"tracing {type(model).__name__}, {len(facts.layers)} layers")
    graph = to_onnx(model, facts.layers, opset, facts.rotations)
    # Only what is quantized has to be found again.
    sought = model.named_parameters() if precision in FORMS else ()
    origins = Origins({name: each.detach().numpy() for name, each in sought if each.ndim <= 2})
    passes = optimize(
        graph, length, length + padding_positions(facts.group), origins, rotate=how is not None and bool(how.rotate)
    )
    if kv_cache == "int8":
        progress("finding the ranges of keys and values")
        quantize_cache(graph, cache_scales(model, read.tokenizer, length))

    def calibrate(wanted: Mapping[str, Rotated], quantize: Quantize) -> dict[str, BlockWeights]:
        return calibrated_blocks(model, calibration_sequences(read.tokenizer, length, calibration), wanted, quantize)

    stored = quantized(graph, precision, how, origins, calibrate, progress)
    passes["calibrate"] = stored.calibrated
    for each in stored.graphs.values():
        passes["group_queries"] = group_queries(each)
        clean_up(each)
    return _Made(stored.graphs, stored.origins, passes, origins.rotations_of(stored.origins.values()))


def _check_opset(opset: int) -> None:
    newest = onnx.defs.onnx_opset_version()
    if not MIN_OPSET <= opset <= newest:
        raise ExportError(
            f"opset {opset} is not between {MIN_OPSET}, which the decoder's operators need, and {newest}, which the "
            "installed onnx knows"
        )


Choice = TypeVar("Choice", bound=str)


def _one_of(name: str, value: str, allowed: Sequence[Choice]) -> Choice:
    for each in allowed:
        if each == value:
            return each
    raise ExportError(f"{name} {value!r} is not one of: {', '.join(allowed)}")


def check_target(directory: Path, *, force: bool) -> None:
    """Refuse early what `staged` would refuse late.

    Raises:
        ExportError: something stands there and may not be replaced.
    """
    if not directory.exists():
        return
    if not force:
        raise ExportError(f"{directory} exists already; give --force to replace it, or another directory")
    if not directory.is_dir() or (any(directory.iterdir()) and not (directory / MANIFEST_FILE).is_file()):
        raise ExportError(f"{directory} is not a decoder directory, so --force does not replace it; give another one")


def _length(source: ModelSource, facts: Survey, asked: int | None) -> int:
    if asked is None:
        return facts.max_length
    if not MIN_LENGTH <= asked <= facts.max_length:
        raise ExportError(
            f"{source.id}: max length {asked} is not between {MIN_LENGTH} and the model's {facts.max_length} positions"
        )
    return asked


def _spec(value: Any) -> TensorSpec:
    shape = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
    return TensorSpec(name=value.name, dtype=value.dtype.name.lower(), shape=shape)


@contextmanager
def staged(directory: Path, *, force: bool) -> Iterator[Path]:
    """A directory beside the target that takes its place if all goes well, and is gone if not."""
    directory = directory.resolve()
    with ExitStack() as stack:
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            staging = stack.enter_context(folder_beside(directory))
        except OSError as error:
            raise ExportError(f"{directory.parent} cannot be written to: {error.strerror}") from error
        with _explained(directory):
            yield staging
            (replace if force else put)(staging, directory)


@contextmanager
def _explained(directory: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise ExportError(
            f"{directory} was written by another process meanwhile; give --force to replace it, or another directory"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, None):  # numpy's writer gives no number, only that it could not write
            free = shutil.disk_usage(directory.parent).free
            raise ExportError(
                f"the disk of {directory.parent} is full ({free // 2**20} MiB are left without what was written); free "
                "some room or export elsewhere"
            ) from error
        raise ExportError(f"{directory} cannot be written: {error.strerror or error}") from error
