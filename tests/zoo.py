"""Tiny random models of many architectures, saved as a user would have them: weights, config, tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCAB = 300
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
_GROUPED: dict[str, Any] = {**_COMMON, "num_key_value_heads": 2}
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2}

# Sliding windows are shorter than the sequences that the tests run, so that a window that is ignored shows.
CONFIGS: dict[str, dict[str, Any]] = {
    "cohere": {**_GROUPED},
    "gemma2": {**_GROUPED, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
    "gemma3_text": {**_GROUPED, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
    "gpt2": {
        **{k: _COMMON[k] for k in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")},
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
    },
    "gpt_neox": {**_COMMON},
    "gpt_oss": {
        **_GROUPED,
        **_EXPERTS,
        "head_dim": 16,
        "num_local_experts": 4,
        "sliding_window": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "granite": {**_GROUPED, "logits_scaling": 2.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5},
    "llama": {**_GROUPED},
    "mistral": {**_GROUPED, "sliding_window": 8},
    "mixtral": {**_GROUPED, **_EXPERTS, "num_local_experts": 4},
    "olmo2": {**_GROUPED},
    "opt": {
        **{k: v for k, v in _COMMON.items() if k != "intermediate_size"},
        "ffn_dim": 96,
        "word_embed_proj_dim": 64,
        "do_layer_norm_before": True,
    },
    "phi3": {**_GROUPED},
    "qwen2": {**_GROUPED},
    "qwen3": {**_GROUPED, "head_dim": 16},
    "qwen3_moe": {**_GROUPED, **_EXPERTS, "head_dim": 16, "num_experts": 4, "moe_intermediate_size": 48},
    "stablelm": {**_GROUPED},
    "starcoder2": {**_GROUPED, "sliding_window": 8},
}

_TOKENS = {name: _COMMON[name] for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
# Attention code of their own, most of them: not for the in-place layout.
GROWING_ONLY: dict[str, dict[str, Any]] = {
    "bloom": {**_TOKENS, "hidden_size": 64, "n_layer": 2, "n_head": 4},
    "falcon": {
        **{k: v for k, v in _COMMON.items() if k != "intermediate_size"},
        "num_kv_heads": 2,
        "new_decoder_architecture": True,
        "alibi": False,
    },
    "gemma": {**_GROUPED, "head_dim": 16},
    "gpt_bigcode": {**_TOKENS, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "multi_query": True},
    "gpt_neo": {
        **_TOKENS,
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
        "max_position_embeddings": 128,
    },
    "gptj": {**_TOKENS, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 8},
    "mpt": {**_TOKENS, "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128},
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and three special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    return fast


def configuration(architecture: str, **changes: Any) -> dict[str, Any]:
    """What `AutoConfig.for_model` is given."""
    return {**(CONFIGS | GROWING_ONLY)[architecture], **changes}


def save_model(directory: Path, architecture: str, seed: int = 0, **changes: Any) -> Path:
    """A random model of the architecture; weights large enough that attention matters to the logits."""
    config = AutoConfig.for_model(architecture, **configuration(architecture, **changes))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.12) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory
