"""The contract between the two worlds: what a decoder directory holds, and the proof that it was tested.

`manifest.json` is written by the export and binds every file by its hash; `verification.json` is written by the proof
and binds the manifest. The serving world reads both and nothing else of the export world.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from bento_kv.contract.graph_io import GROUP_BIAS, TensorSpec
from bento_kv.contract.record import Record, read_record, write_record
from bento_kv.errors import IntegrityError

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
MANIFEST_FILE = "manifest.json"
VERIFICATION_FILE = "verification.json"

Layout = Literal["in-place", "growing"]
Precision = Literal["fp32", "fp16", "int8", "int4"]
KvCache = Literal["fp32", "int8"]

# What another machine's kernels may change in a golden logit, relative to the step's largest. Activations rounded to 8 bits
# make much of little: a value that differs by 1e-6 is in another step now and then.
_GOLDEN_LIMITS: Mapping[Precision, float] = {"fp32": 1e-3, "fp16": 1e-3, "int8": 0.1, "int4": 0.1}


class Source(Record):
    """Where the weights came from: what the user named, its revision if it has one, and the weights' hash."""

    id: str
    revision: str | None
    weights_sha256: str


class LayerGeometry(Record):
    """The cache of one layer: keys and values are `[slots, kv_heads, max_length, head_dim]`."""

    kv_heads: int
    head_dim: int


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
        reduce_range: int8 weights in columns use 7 of their bits; see `quantization.REDUCED_RANGE`.
        passes: what was done to the traced graph: how often each pass found what it looks for.
        files: the sha256 of every file but the manifest and the verification record.
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
    layers: tuple[LayerGeometry, ...]
    vocab_size: int
    max_length: int
    token_ids: TokenIds
    weights: dict[str, tuple[str, ...]] = Field(default_factory=dict)
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
        return "int8" if self.precision == "fp32" and self.kv_cache == "int8" else self.precision

    @property
    def group(self) -> int:
        """Query heads that share keys, where the graphs can take them as queries of one head; 1 where they cannot."""
        return next((int(spec.shape[2]) for spec in self.inputs if spec.name == GROUP_BIAS), 1)

    @property
    def spare(self) -> int:
        """Positions that a slot's buffer has beyond those that it may use; see `spare_positions`."""
        return spare_positions(self.group)

    @property
    def golden_limit(self) -> float:
        """What another machine may change in a golden logit, relative to the step's largest."""
        return _GOLDEN_LIMITS[self.coarsest]

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
        """Compare every file's hash with the manifest's.

        Raises:
            IntegrityError: a file is missing, was changed, or was added.
        """
        unknown = sorted(_files_of(directory) - set(self.files))
        if unknown:
            raise IntegrityError(f"{directory / unknown[0]} is not in the manifest; remove it or export again")
        for name, expected in self.files.items():
            path = directory / name
            if not path.is_file():
                raise IntegrityError(f"{path} is missing; the manifest lists it. Export the decoder again.")
            if sha256(path) != expected:
                raise IntegrityError(
                    f"{path} was changed after the export: its sha256 is not the manifest's. Export the decoder again."
                )


def spare_positions(group: int) -> int:
    """Positions beyond a row's last one that a step may write to: copies of its newest token, which nothing reads."""
    return max(1, group - 1)


class Check(Record):
    """One check of a proof. `measured` and `limit` are in the unit that `explain` names; passed is measured <= limit."""

    id: str
    passed: bool
    measured: float | None
    limit: float | None
    explain: str


class LayerProof(Record):
    """The checks of one layer of the problem: the export, or the loop."""

    passed: bool
    checks: tuple[Check, ...]

    @model_validator(mode="after")
    def _follows_from_the_checks(self) -> Self:
        if self.passed and not (self.checks and all(check.passed for check in self.checks)):
            raise ValueError("it says passed, and its checks do not")
        return self


class GoldenStep(Record):
    """The token that greedy decoding took, and the likeliest tokens with their logits, likeliest first."""

    token: int
    top: tuple[tuple[int, float], ...]


class GoldenPrompt(Record):
    """A prompt and what the proven decoder answered, step by step; replayed where the decoder is loaded."""

    prompt: tuple[int, ...]
    steps: tuple[GoldenStep, ...]


class Verification(Record):
    """`verification.json`, bound to its manifest by hash. `golden_limit` bounds a golden logit's deviation at load."""

    schema_: Literal["bento_kv.verification/1"] = Field("bento_kv.verification/1", alias="schema")
    passed: bool
    manifest_sha256: str
    export: LayerProof
    loop: LayerProof
    golden: tuple[GoldenPrompt, ...]
    golden_limit: float = Field(le=max(_GOLDEN_LIMITS.values()))
    machine: dict[str, str]
    versions: dict[str, str]
    created: str
    seconds: float

    @model_validator(mode="after")
    def _follows_from_the_layers(self) -> Self:
        if self.passed and not (self.export.passed and self.loop.passed and self.golden):
            raise ValueError("it says passed, and its layers do not, or it has no golden prompts")
        return self

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read and validate; raises ManifestError."""
        return read_record(cls, directory / VERIFICATION_FILE, remedy="`bento-kv verify` writes one")

    def write(self, directory: Path) -> None:
        write_record(self, directory / VERIFICATION_FILE)


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(directory: Path) -> dict[str, str]:
    """Hashes of all files of a decoder directory but the two records themselves."""
    return {name: sha256(directory / name) for name in sorted(_files_of(directory))}


def _files_of(directory: Path) -> set[str]:
    """All files below a decoder directory but the two records, and the one that BentoML's model store adds."""
    own = {MANIFEST_FILE, VERIFICATION_FILE, "model.yaml"}
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()} - own


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Installed versions, Python's and bento_kv's among them; packages that are not installed are left out."""
    from bento_kv import __version__

    # Our own is known even where the package stands in a folder and was not installed, as inside a bento.
    found = {"python": platform.python_version(), "bento-kv": __version__}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
