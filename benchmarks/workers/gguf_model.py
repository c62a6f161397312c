"""A Hugging Face directory of a Llama or Qwen2 shape as a GGUF file, for llama.cpp to quantize, or to serve.

    build/peers/llama_cpp/bin/python -m benchmarks.workers.gguf_model DIRECTORY FILE   # to serve: with its vocabulary

Names and layout: llama.cpp's `gguf-py/gguf/constants.py` and `convert_hf_to_gguf.py`, and the GGUF specification in ggml.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
MODEL = {"embed_tokens": "token_embd", "norm": "output_norm"}  # no head: it is the embedding


def write_gguf(source: Path, file: Path, *, vocabulary: bool = False) -> None:
    """Write the model in float32.

    Args:
        source: the directory.
        file: to write.
        vocabulary: with the tokens of a byte-level BPE that merges nothing; else token ids go in and out.
    """
    config = json.loads((source / "config.json").read_text())
    architecture = config["model_type"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_vocab_size(config["vocab_size"])
    if vocabulary:
        _add_tokens(writer, source)
    else:
        writer.add_tokenizer_model("no_vocab")
    for name, array in load_file(source / "model.safetensors").items():
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            array = _interleaved(array, heads if "q_proj" in name else kv_heads)
        writer.add_tensor(_name(name), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokens(writer: gguf.GGUFWriter, source: Path) -> None:
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    plain = {index: (token, gguf.TokenType.NORMAL) for token, index in tokenizer["model"]["vocab"].items()}
    special = {each["id"]: (each["content"], gguf.TokenType.CONTROL) for each in tokenizer["added_tokens"]}
    tokens, kinds = zip(*(token for _, token in sorted((plain | special).items())), strict=True)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{tokens[0]} {tokens[1]}"])  # two control characters: a list that is empty is refused
    writer.add_add_bos_token(False)
    writer.add_eos_token_id(json.loads((source / "generation_config.json").read_text())["eos_token_id"])


def _name(name: str) -> str:
    stem, kind = name.removeprefix("model.").rsplit(".", 1)
    if stem in MODEL:
        return f"{MODEL[stem]}.{kind}"
    _, layer, part = stem.split(".", 2)
    return f"blk.{layer}.{LAYER[part]}.{kind}"


def _interleaved(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows `[heads * head_dim, hidden]` with the two halves of each head interleaved, as llama.cpp rotates pairs here."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])  # [heads, half, head_dim / 2, hidden]
    return halves.swapaxes(1, 2).reshape(weight.shape)


if __name__ == "__main__":
    write_gguf(Path(sys.argv[1]), Path(sys.argv[2]), vocabulary=True)
