"""`manifest.json`: what a decoder directory holds.

It is written by the export and binds every file by its hash; `verification.json` is written by the proof and binds the
manifest. The serving world reads both and nothing else of the export world.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from bento_kv.contract.cache import CacheSpec
from bento_kv.contract.files import MANIFEST_FILE, MODEL_FILE, check_hashes, name_faults
from bento_kv.contract.graph_io import GROUP_BIAS, TensorSpec
from bento_kv.contract.precision import PRECISIONS, KvCache, Precision, PrecisionTraits, coarsest
from bento_kv.contract.record import Record, read_record, write_record
from bento_kv.contract.rotation import Rotated
from bento_kv.contract.weight_options import OptionValue

Layout = Literal["in-place", "growing"]


class Source(Record):
    """Where the weights came from: a hub id with its revision, or the name of a folder; and the weights' hash.

    Where the folder stood is not said: a decoder goes to other machines.
    """

    id: str
    revision: str | None
    weights_sha256: str


class TokenIds(Record):
    """Special tokens of the model; any of `eos` ends an answer."""

    bos: int | None
    eos: tuple[int, ...]
    pad: int | None


class Manifest(Record):
    """`manifest.json`.

    Attributes:
        precision: of the weights.
        kv_cache: element type of the cache; int8 has a scale for each channel, in the graph.
        graphs: the ONNX files; where there are two, the first takes prompts and the second continues them.
        inputs, outputs: of the last graph.
        weights: of each quantized weight, a matrix `[in_features, out_features]` in the graph's terms, the parameters of
            the source that stand in it side by side, along out_features, as `name` or `name[first:last]`; empty in fp32.
        rotations: of names in `weights` that are no parameters themselves, but parameters rotated: how.
        quantization: the options of quantization that were in force, by name; empty in fp32.
        tried: precisions that were tried before this one was chosen, and what of their proofs failed.
        reduce_range: int8 weights in columns use 7 of their bits; see `quantization.REDUCED_RANGE`.
        passes: what was done to the traced graph: how often each pass found what it looks for.
        files: the sha256 of every file but the manifest and the verification record, by its name: a plain file below the
            directory, which no link leads to.
    """

    schema_: Literal["bento_kv.manifest/1"] = Field("bento_kv.manifest/1", alias="schema")
    source: Source
    architecture: str
    layout: Layout
    precision: Precision
    kv_cache: KvCache = "fp32"
    graphs: tuple[str, ...] = (MODEL_FILE,)
    opset: dict[str, int]
    ir_version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: tuple[CacheSpec, ...]
    vocab_size: int
    max_length: int
    token_ids: TokenIds
    weights: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    rotations: dict[str, Rotated] = Field(default_factory=dict)
    quantization: dict[str, OptionValue] = Field(default_factory=dict)
    tried: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    reduce_range: bool = False
    passes: dict[str, int] = Field(default_factory=dict)
    files: dict[str, str]
    versions: dict[str, str]
    created: str

    @property
    def quantized(self) -> bool:
        """Whether weights or the cache are; a float twin can be made then."""
        return bool(self.weights) or self.kv_cache != "fp32"

    @property
    def coarsest(self) -> Precision:
        """Of the precisions of weights and cache, the one that decides how close results can come to the source's."""
        return coarsest(self.precision, self.kv_cache)

    @property
    def traits(self) -> PrecisionTraits:
        """What depends on how its weights are stored."""
        return PRECISIONS[self.precision]

    @property
    def group(self) -> int:
        """Query heads that share keys, where the graphs can take them as queries of one head; 1 where they cannot."""
        return next((int(spec.shape[2]) for spec in self.inputs if spec.name == GROUP_BIAS), 1)

    @property
    def padding(self) -> int:
        """Positions that a slot's buffer has beyond those that it may use; see `padding_positions`."""
        return padding_positions(self.group)

    @property
    def golden_limit(self) -> float:
        """What another machine may change in a golden logit, relative to the step's largest."""
        return PRECISIONS[self.coarsest].golden

    @field_validator("files")
    @classmethod
    def _are_below_the_directory(cls, files: dict[str, str]) -> dict[str, str]:
        if fault := next(name_faults(files), None):
            raise ValueError(fault)
        return files

    @model_validator(mode="after")
    def _names_the_graphs(self) -> Self:
        missing = [name for name in self.graphs if name not in self.files]
        if missing or not 1 <= len(self.graphs) <= 2:
            raise ValueError(f"`files` does not name {missing[0]}" if missing else "`graphs` names neither one nor two")
        return self

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read and validate; raises ManifestError."""
        return read_record(cls, directory / MANIFEST_FILE, remedy="`bento-kv export` writes one")

    def write(self, directory: Path) -> None:
        write_record(self, directory / MANIFEST_FILE)

    def check_files(self, directory: Path) -> None:
        """Compare every file's hash with the manifest's; see `check_hashes`."""
        check_hashes(directory, self.files)


def padding_positions(group: int) -> int:
    """Positions beyond a row's last one that a step may write to: copies of its newest token, which nothing reads."""
    return max(1, group - 1)
