"""The engines that take part: what each is called, which Python runs it, and which of its settings are ours."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "build" / "peers"
REQUIREMENTS = Path(__file__).parent / "peers"
STAMP = ".requirements"  # in an environment: the hash of the file that it was made from

# What an engine does to have several long contexts ready: it copies one, finds those of fewer rows again, or computes all.
Filling = Literal["copies", "keeps", "computes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A row of the comparison.

    Attributes:
        name: on the command line and in tables.
        worker: module of `benchmarks.workers`.
        precision: of the weights.
        environment: folder of `build/peers`; this Python if None.
        files: name of the prepared files, which engines may share; the source itself if None.
        options: passed to the worker.
        filling: what `fill` costs.
        default: takes part unless engines are named.
    """

    name: str
    worker: str
    precision: str
    environment: str | None = None
    files: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    filling: Filling = "copies"
    default: bool = True

    @property
    def python(self) -> Path:
        return Path(sys.executable) if self.environment is None else PEERS / self.environment / "bin" / "python"

    @property
    def absent(self) -> str | None:
        """Why it cannot take part and what to do, or None if it can."""
        return None if self.environment is None else absent(self.environment)

    @property
    def fingerprint(self) -> str:
        """Hash of what prepared files depend on besides the model: the export's code, or the peer's worker and versions."""
        folder = ROOT / "benchmarks" / "workers"
        files = [folder / f"{self.worker}.py"]
        if self.environment is None:
            package = ROOT / "bento_kv"
            files += [*sorted((package / "export").rglob("*.py")), package / "repair" / "adopt.py"]
            files += [package / "contract" / f"{name}.py" for name in ("manifest", "quantization", "rotation")]
        else:
            files += [requirements_file(self.environment), *sorted(folder.glob("gguf*.py"))]
        return _hash(files)


def absent(environment: str) -> str | None:
    """Why an environment of `build/peers` cannot be used and what to do, or None if it can."""
    remedy = f"run: python -m benchmarks.peers.setup {environment}"
    stamp = PEERS / environment / STAMP
    if not stamp.is_file():
        return f"not installed; {remedy}"
    if stamp.read_text() != requirements_hash(environment):
        return f"installed from other requirements than today's; {remedy}"
    return None


def requirements_file(environment: str) -> Path:
    return REQUIREMENTS / f"requirements-{environment}.txt"


def requirements_hash(environment: str) -> str:
    return _hash([requirements_file(environment)])


def _hash(files: list[Path]) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _ours(precision: str, exact: str, kv_cache: str = "fp32", block_size: int | None = None) -> Engine:
    files, name = f"bento_kv-{precision}", f"bento_kv-{precision}-{exact}"
    options: dict[str, Any] = {"precision": precision, "exact": exact, "kv_cache": kv_cache}
    if kv_cache != "fp32":
        files, name = f"{files}-kv_{kv_cache}", f"{name}-kv_{kv_cache}"
    if block_size is not None:
        files, name = f"{files}-block_{block_size}", f"{name}-block_{block_size}"
        options["quantization"] = {"block_size": block_size}
    return Engine(
        name=name, worker="ours", precision=precision, files=files, options=options, default=block_size is None
    )


# llama.cpp's types of weights, and which of ours each is like.
GGUF_TYPES = {"q4_0": "int4", "q4_k_m": "int4", "q5_k_m": "int5", "q8_0": "int8"}


def _llama(kind: str, *, flash_attention: bool) -> Engine:
    plain = kind == "q4_0"
    return Engine(
        name="llama.cpp" + ("" if plain else f"-{kind}") + ("-flash" if flash_attention else ""),
        worker="llama",
        precision=GGUF_TYPES[kind],
        environment="llama_cpp",
        files=f"gguf-{kind}",
        options={"flash_attention": flash_attention, "type": kind},
        default=plain,
    )


def _openvino(precision: str) -> Engine:
    plain = precision == "int4"
    return Engine(
        name="openvino" + ("" if plain else f"-{precision}"),
        worker="openvino",
        precision=precision,
        environment="openvino",
        files=f"openvino-{precision}",
        options={"precision": precision},
        filling="keeps",
        default=plain,
    )


ENGINES = {
    engine.name: engine
    for engine in (
        *(_ours(precision, exact) for precision in ("int4", "int8", "fp32") for exact in ("batch", "full")),
        *(_ours(precision, "batch", "int8") for precision in ("int4", "int8")),
        Engine(
            name="bento_kv-growing",
            worker="ours",
            precision="fp32",
            files="bento_kv-growing",
            options={"precision": "fp32", "exact": "batch", "layout": "growing"},
            default=False,
        ),
        _ours("int4", "batch", block_size=128),
        *(_llama(kind, flash_attention=flash) for kind in GGUF_TYPES for flash in (False, True)),
        *(_openvino(precision) for precision in ("int4", "int8")),
        Engine(
            name="genai",
            worker="genai",
            precision="int4",
            environment="genai",
            files="genai-int4",
            filling="computes",
        ),
        Engine(name="transformers", worker="generate", precision="fp32"),
        Engine(
            name="optimum",
            worker="optimum_ort",
            precision="fp32",
            environment="optimum",
            files="optimum-fp32",
        ),
    )
}


def choose(names: str | None) -> list[Engine]:
    """The engines of a comma-separated list, where `bento_kv` stands for ours that take part by default; all of these if None.

    Raises:
        ValueError: there is no engine of a name.
    """
    if names is None:
        return [engine for engine in ENGINES.values() if engine.default]
    chosen: list[Engine] = []
    for name in names.split(","):
        found = [
            engine
            for engine in ENGINES.values()
            if name == engine.name or (engine.default and name == engine.name.split("-")[0])
        ]
        if not found:
            raise ValueError(f"there is no engine {name!r}; there are {', '.join(ENGINES)}")
        chosen += [engine for engine in found if engine not in chosen]
    return chosen
