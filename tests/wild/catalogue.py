"""What is exported by whom: data only, so that it can be imported without any exporter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Exporter = Literal["optimum", "optimum-old", "genai"]

_SPECIAL: dict[str, Any] = {"vocab_size": 300, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
# Wide weights: with the usual 0.02 the logits of a tiny model are nearly flat, and a fault hides in them.
_TINY: dict[str, Any] = {**_SPECIAL, "initializer_range": 0.5, "hidden_size": 64, "num_attention_heads": 4}
_LLAMA: dict[str, Any] = {**_TINY, "num_hidden_layers": 2, "intermediate_size": 96, "max_position_embeddings": 256}
_GPT2: dict[str, Any] = {**_SPECIAL, "initializer_range": 0.5, "n_embd": 64, "n_layer": 3, "n_head": 4}

# Name of a model: (architecture, configuration).
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("bloom", {**_SPECIAL, "initializer_range": 0.5, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "falcon": (
        "falcon",
        {
            **{name: value for name, value in _LLAMA.items() if name != "intermediate_size"},
            "num_kv_heads": 4,  # the exporter sizes its dummy cache wrongly when this is below the number of heads
            "new_decoder_architecture": True,
            "alibi": False,
        },
    ),
    "gemma": ("gemma", {**_LLAMA, "num_key_value_heads": 2, "head_dim": 16}),
    "gpt2": ("gpt2", {**_GPT2, "n_positions": 256}),
    "gpt_bigcode": ("gpt_bigcode", {**_GPT2, "n_positions": 256, "multi_query": True}),
    "gpt_neo": (
        "gpt_neo",
        {
            **{name: value for name, value in _TINY.items() if name != "num_attention_heads"},
            "num_heads": 4,
            "num_layers": 2,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
            "max_position_embeddings": 256,
        },
    ),
    "llama": ("llama", {**_LLAMA, "num_key_value_heads": 2}),
    "llama_mha": ("llama", _LLAMA),
    "opt": (
        "opt",
        {
            **{name: value for name, value in _LLAMA.items() if name != "intermediate_size"},
            "ffn_dim": 96,
            "word_embed_proj_dim": 64,
            "init_std": 0.5,
        },
    ),
    "qwen2": ("qwen2", {**_LLAMA, "num_key_value_heads": 2}),
}


@dataclass(frozen=True)
class Export:
    """One directory to make. `fault` says what is wrong with it as its exporter writes it; empty where it is right."""

    name: str
    model: str
    exporter: Exporter
    how: str
    options: dict[str, Any] = field(default_factory=dict)
    fault: str = ""


def _optimum() -> list[Export]:
    cached, plain = {"task": "text-generation-with-past"}, {"task": "text-generation"}
    made = [
        Export(f"optimum-{model}", model, "optimum", "main_export", cached)
        for model in ("bloom", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "llama", "opt", "qwen2")
    ]
    for model in ("gpt2", "llama", "qwen2"):
        fault = "does not load: a LayerNormalization mixes float and float16" if model == "gpt2" else ""
        half = {**cached, "dtype": "fp16"}
        made.append(Export(f"optimum-{model}-nocache", model, "optimum", "main_export", plain))
        made.append(Export(f"optimum-{model}-fp16", model, "optimum", "main_export", half, fault))
    made.append(Export("optimum-llama-external", "llama", "optimum", "external_data", cached))
    made.append(Export("optimum-gpt2-fp16ort", "gpt2", "optimum", "convert_to_float16", cached))
    return made


def _optimum_old() -> list[Export]:
    cached = {"task": "text-generation-with-past"}
    pair = {**cached, "legacy": True, "no_post_process": True}
    merged = {**cached, "legacy": True}
    made = [
        Export(f"optimum_old-{m}", m, "optimum-old", "main_export", cached) for m in ("bloom", "gpt_bigcode", "llama")
    ]
    for model in ("bloom", "gpt2", "gpt_bigcode", "llama", "qwen2"):
        made.append(Export(f"optimum_old-{model}-pair", model, "optimum-old", "main_export", pair))
        made.append(Export(f"optimum_old-{model}-merged", model, "optimum-old", "main_export", merged))
    fault = "traced with one token, the causal mask was left out: a step of several tokens looks ahead"
    made.append(Export("ort-gpt2", "gpt2", "optimum-old", "stacked_gpt2", {"attention": "eager", "opset": 11}))
    made.append(
        Export("ort-gpt2-sdpa", "gpt2", "optimum-old", "stacked_gpt2", {"attention": "sdpa", "opset": 14}, fault)
    )
    return made


def _genai() -> list[Export]:
    made = [
        Export(f"genai-{model}", model, "genai", "genai_builder", {"precision": "fp32"})
        for model in ("gemma", "llama", "qwen2")
    ]
    made += [
        Export(f"genai-{model}-int4", model, "genai", "genai_builder", {"precision": "int4"})
        for model in ("llama", "qwen2")
    ]
    fault = "recorded shapes of the repeated keys and values leave out the past: every step with a past fails"
    half = {"precision": "fp16"}
    pruned = {"precision": "fp32", "extra": ["prune_lm_head=true"]}
    made.append(Export("genai-llama-fp16", "llama", "genai", "genai_builder", half, fault))
    made.append(Export("genai-llama_mha-fp16", "llama_mha", "genai", "genai_builder", half))
    made.append(Export("genai-llama-last", "llama", "genai", "genai_builder", pruned))
    return made


EXPORTS: tuple[Export, ...] = (*_optimum(), *_optimum_old(), *_genai())
