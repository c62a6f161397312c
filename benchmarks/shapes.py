"""The models that are timed: real shapes with random weights, made on the spot. Speed does not look at the values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Bits that one weight takes with its share of the scales: blocks of 32 with a half float each; one float a column.
WEIGHT_BITS = {"fp32": 32.0, "int8": 8.0, "int5": 5.5, "int4": 4.5}


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder's dimensions.

    Attributes:
        name: of the model whose `config.json` has them.
        architecture: transformers' model type.
        bias: the query, key and value projections have one.
    """

    name: str
    architecture: str
    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    positions: int
    bias: bool

    @property
    def matrix_weights(self) -> int:
        """Weights that one token's step multiplies with, the head's among them. The embedding is a look-up of one row."""
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        return self.layers * (attention + 3 * self.hidden * self.intermediate) + self.vocab * self.hidden

    @property
    def cache_values(self) -> int:
        """Keys and values that one position has, in numbers."""
        return 2 * self.layers * self.kv_heads * self.head_dim


SHAPES = {
    "135m": Shape(
        name="HuggingFaceTB/SmolLM2-135M",
        architecture="llama",
        vocab=49152,
        hidden=576,
        intermediate=1536,
        layers=30,
        heads=9,
        kv_heads=3,
        head_dim=64,
        rope_theta=100000.0,
        positions=8192,
        bias=False,
    ),
    "0.5b": Shape(
        name="Qwen/Qwen2.5-0.5B",
        architecture="qwen2",
        vocab=151936,
        hidden=896,
        intermediate=4864,
        layers=24,
        heads=14,
        kv_heads=2,
        head_dim=64,
        rope_theta=1000000.0,
        positions=32768,
        bias=True,
    ),
}


def write_model(shape: Shape, directory: Path) -> None:
    """Save a random model of a shape, and a tokenizer that has a text for every id, as a Hugging Face directory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        shape.architecture,
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.positions,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    config.rope_theta = shape.rope_theta  # where older versions of transformers, which some peers need, look for it
    model = AutoModelForCausalLM.from_config(config).float()
    if shape.bias:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("proj.bias"):  # zero otherwise, and converters might leave it out
                    parameter.normal_(std=0.02)
    model.save_pretrained(directory)
    _tokenizer(shape.vocab).save_pretrained(directory)
    file = directory / "tokenizer_config.json"
    # A name that older versions of transformers know as well as the present one.
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))


def _tokenizer(vocab: int) -> Any:
    """Byte-level BPE: three special tokens, 256 bytes, and words of letters for the rest."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>"]
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"w{number}" for number in range(vocab - len(special) - len(bytes_))]
    ids = {token: index for index, token in enumerate([*special, *bytes_, *words])}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=vocab
    )
