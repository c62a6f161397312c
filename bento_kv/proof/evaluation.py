"""How a decoder does on text: the quality gate's measures, without its limits, on its text or on the user's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx

from bento_kv.contract.files import MANIFEST_FILE
from bento_kv.contract.manifest import Manifest
from bento_kv.contract.precision import KvCache, Precision
from bento_kv.contract.reference import NumericReference
from bento_kv.errors import SourceError
from bento_kv.proof.effort import TEXT_LENGTH, TEXTS_TOGETHER
from bento_kv.proof.quality import Divergence, TextEncoder, measure, probe_sequences
from bento_kv.runtime.open import open_decoder
from bento_kv.text.tokenizer import Tokenizer

_SHORTEST = 32  # tokens of a text that something can be said of
_MOST_SEQUENCES = 64  # of a long file, evenly from all of it


class Reference(NumericReference, Protocol):
    """The model that a decoder was made from."""

    @property
    def parameters(self) -> int:
        """How many numbers its weights are, tied ones once."""
        ...


@dataclass(frozen=True, slots=True)
class Quality:
    """What was seen of one kind of positions.

    Attributes:
        positions: how many.
        kl: mean divergence of the predictions from the reference's, in nats a token.
        kl_99: 99 of 100 positions are below it.
        agreement: share of positions whose likeliest token is the reference's.
        perplexity: of the text.
        reference_perplexity: of the text, for the reference.
    """

    positions: int
    kl: float
    kl_99: float
    agreement: float
    perplexity: float
    reference_perplexity: float

    @classmethod
    def of(cls, seen: Divergence) -> Quality:
        """The numbers of one phase."""
        surprise, gained = float(np.mean(seen.surprise)), float(np.mean(seen.gained))
        return cls(
            positions=len(seen.kl),
            kl=float(np.mean(seen.kl)),
            kl_99=float(np.quantile(seen.kl, 0.99)),
            agreement=1.0 - float(np.mean(seen.other)),
            perplexity=float(np.exp(surprise + gained)),
            reference_perplexity=float(np.exp(surprise)),
        )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A decoder's size and quality.

    Attributes:
        target: the directory.
        precision, kv_cache: as the manifest has them.
        bits: that the graph which decodes stores for a parameter of the reference, scales and a second copy of the embedding
            and all: what is read to decode, and the memory that it takes.
        mib: of all files together.
        prefill: of positions computed in prompts.
        decode: of positions decoded one by one behind a prompt.
    """

    target: str
    precision: Precision
    kv_cache: KvCache
    bits: float
    mib: float
    prefill: Quality
    decode: Quality


def evaluate(directory: Path, reference: Reference, text: Path | None = None) -> Evaluation:
    """Run a decoder beside the model that it was made from.

    Args:
        directory: of the decoder.
        reference: in fp32.
        text: a UTF-8 file; the quality gate's own passages and chats unless given.

    Raises:
        SourceError: the text cannot be read, or is too short.
    """
    manifest = Manifest.read(directory)
    tokenizer = Tokenizer(directory)
    if text is None:
        sequences = probe_sequences(tokenizer, manifest.max_length)
    else:
        sequences = _pieces(tokenizer, text, min(TEXT_LENGTH, manifest.max_length))
    length = max(map(len, sequences))
    decoder = open_decoder(directory, slots=TEXTS_TOGETHER, max_length=min(manifest.max_length, length + 1))
    prefilled, decoded = measure(decoder, reference, sequences)
    return Evaluation(
        target=str(directory),
        precision=manifest.precision,
        kv_cache=manifest.kv_cache,
        bits=8 * _stored_bytes(directory / manifest.graphs[-1]) / reference.parameters,
        mib=sum((directory / name).stat().st_size for name in (*manifest.files, MANIFEST_FILE)) / 2**20,
        prefill=Quality.of(prefilled),
        decode=Quality.of(decoded),
    )


def _pieces(encoder: TextEncoder, file: Path, length: int) -> list[list[int]]:
    """Token ids of a file, cut into sequences of one length."""
    try:
        ids = encoder.encode(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{file} cannot be read as UTF-8 text: {error}") from error
    if len(ids) < _SHORTEST:
        raise SourceError(f"{file} has {len(ids)} tokens, too few to say anything; give at least {_SHORTEST}")
    size = min(length, len(ids))
    found = [ids[at : at + size] for at in range(0, len(ids) - size + 1, size)]
    return found[:: -(-len(found) // _MOST_SEQUENCES)]


def _stored_bytes(graph: Path) -> int:
    """Of all its initializers, wherever their data is."""
    tensors = onnx.load(graph, load_external_data=False).graph.initializer
    return sum(onnx.helper.tensor_dtype_to_np_dtype(each.data_type).itemsize * prod(each.dims) for each in tensors)


def table(found: Sequence[Evaluation]) -> str:
    """One decoder a line; perplexities as times the reference's."""
    head = f"{'':26} {'prompts':>28}   {'decoding':>28}"
    names = (
        f"{'precision':9} {'bits':>6} {'MiB':>8}" + 2 * f"   {'KL':>8} {'ppl x':>8} {'same first':>10}" + "  decoder"
    )
    lines = [head, names]
    for each in found:
        precision = each.precision + ("" if each.kv_cache == "fp32" else f"/{each.kv_cache}")
        cells = "".join(f"   {_cells(quality)}" for quality in (each.prefill, each.decode))
        lines.append(f"{precision:9} {each.bits:6.2f} {each.mib:8.1f}{cells}  {each.target}")
    return "\n".join(lines)


def _cells(quality: Quality) -> str:
    ratio = quality.perplexity / quality.reference_perplexity
    return f"{quality.kl:8.2g} {ratio:8.4f} {quality.agreement:10.1%}"
