"""Who takes part: an engine in a precision, in the ways of running it of which the faster one counts."""

from __future__ import annotations

from benchmarks.catalogue import ENGINES, GGUF_TYPES, Engine

# By name; the first engine's predictions are measured, and of all the best speed of each cell counts.
CONTENDERS: dict[str, tuple[str, ...]] = {
    "bento_kv int4": ("bento_kv-int4-batch",),
    "bento_kv int4, blocks of 128": ("bento_kv-int4-batch-block_128",),
    "bento_kv int4, mode full": ("bento_kv-int4-full",),
    "bento_kv int8": ("bento_kv-int8-batch",),
    "bento_kv fp32": ("bento_kv-fp32-batch",),
    **{
        f"llama.cpp {kind.upper()}": (engine, f"{engine}-flash")
        for kind in GGUF_TYPES
        for engine in ["llama.cpp" if kind == "q4_0" else f"llama.cpp-{kind}"]
    },
    "OpenVINO int4": ("openvino",),
    "OpenVINO int8": ("openvino-int8",),
    "genai int4": ("genai",),
}
REFERENCE = ENGINES["transformers"]  # in fp32


def engines_of(names: list[str]) -> list[Engine]:
    """The engines of contenders."""
    return [ENGINES[engine] for name in names for engine in CONTENDERS[name]]
