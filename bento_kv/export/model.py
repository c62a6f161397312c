"""Loading the torch model, and finding out whether and how it can be exported."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from bento_kv.contract.cache import KvSpec
from bento_kv.errors import BentoKVError, SourceError, UnsupportedArchitecture, first_line
from bento_kv.export import attention
from bento_kv.export.rotary import Rotary
from bento_kv.source import ModelSource

# Rotary embeddings whose frequencies change with the length of the sequence: keys cached at one length would not fit
# the queries of another. Within the length they were trained at, they do not change.
_LENGTH_DEPENDENT_ROTARY = frozenset({"dynamic", "longrope"})


@dataclass(frozen=True, slots=True)
class Survey:
    """What the export needs to know of a model.

    Attributes:
        layers: geometry of the cache, by layer.
        group: query heads that share keys, the most of all layers.
        vocab_size: width of the logits.
        max_length: positions that the model was made for.
        rotations: what the operator shall turn, by call of a rotary function; see `attention.Observations`.
    """

    layers: tuple[KvSpec, ...]
    group: int
    vocab_size: int
    max_length: int
    rotations: tuple[Rotary | None, ...]


def load_config(source: ModelSource) -> PreTrainedConfig:
    """The configuration of a causal language model.

    Raises:
        SourceError: it cannot be read.
        UnsupportedArchitecture: it is not a causal language model that transformers knows.
    """
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            source.path, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers raises nearly anything here, from OSError to TypeError
        if "trust_remote_code" in str(error):
            raise UnsupportedArchitecture(
                f"{source.id}: its architecture is not in transformers but in code that comes with the model, which is "
                "not run"
            ) from error
        raise SourceError(f"{source.id}: its config.json cannot be read: {first_line(error)}") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedArchitecture(
            f"{source.id}: {config.model_type} is not a causal language model in transformers, "
            "so there is no decoder to export"
        )
    return config


def load_model(source: ModelSource, config: PreTrainedConfig, progress: Callable[[str], None]) -> Any:
    """The model in fp32, ready for inference, its attention replaced by the one that surveys.

    Raises:
        SourceError: the weights cannot be read.
        UnsupportedArchitecture: it does not take another attention function.
    """
    attention.register()
    return read_weights(source, config, progress, attn_implementation=attention.SURVEY)


def read_weights(
    source: ModelSource,
    config: PreTrainedConfig,
    progress: Callable[[str], None],
    *,
    attn_implementation: str | None = None,
) -> Any:
    """The model in fp32, ready for inference, with the attention that it chooses itself unless told otherwise.

    Raises:
        SourceError: the weights cannot be read.
        UnsupportedArchitecture: it does not take another attention function.
    """
    model: Any
    info: Any
    try:
        model, info = AutoModelForCausalLM.from_pretrained(  # type: ignore[misc] # a pair, given output_loading_info
            source.path,
            config=config,
            dtype=torch.float32,
            attn_implementation=attn_implementation,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # safetensors, pickle, torch and the model's own code each raise their own
        if attn_implementation and (attn_implementation in str(error) or "attn_implementation" in str(error)):
            raise UnsupportedArchitecture(_own_attention(config.model_type)) from error
        files = ", ".join(file.name for file in source.weight_files()[:3])
        raise SourceError(
            f"{source.id}: its weights ({files}) cannot be read: {first_line(error)}. Copy or download them again, whole"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise SourceError(
            f"{source.id}: its weights lack {len(missing)} tensors that config.json asks for, {missing[0]} first"
        )
    unexpected = sorted(info["unexpected_keys"])
    if unexpected:
        progress(f"leaving out {len(unexpected)} tensors that config.json has no place for, {unexpected[0]} first")
    return model.eval()


def survey(model: PreTrainedModel) -> Survey:
    """Run the model once and note what each attention layer asks of a cache.

    Raises:
        UnsupportedArchitecture: it keeps state elsewhere, or computes attention in a way of its own.
    """
    config = model.config.get_text_config(decoder=True)
    name = config.model_type
    accepted = inspect.signature(model.forward).parameters
    for needed in ("position_ids", "logits_to_keep"):
        if needed not in accepted:
            raise UnsupportedArchitecture(
                f"{name}: {type(model).__name__} takes no {needed}, so packed steps cannot be exported"
            )
    ids = torch.tensor([[0, 1, 2]]) % config.vocab_size
    model.set_attn_implementation(attention.SURVEY)
    with torch.no_grad(), attention.surveying(model) as found:
        try:
            logits = model(
                input_ids=ids,
                position_ids=torch.arange(3)[None],
                past_key_values=attention.PassThroughCache(),
                use_cache=True,
                logits_to_keep=torch.tensor([2]),
            ).logits
        except BentoKVError:
            raise
        except Exception as error:
            raise UnsupportedArchitecture(
                f"{name}: it asks more of its cache than keys and values by layer "
                f"({type(error).__name__}: {first_line(error)})"
            ) from error
    layers = _geometry(name, config.num_hidden_layers, found.shapes)
    group = max(shape.query_heads // shape.kv_heads for shape in found.shapes.values())
    return Survey(layers, group, logits.shape[-1], max_positions(config), tuple(found.rotations))


def _geometry(name: str, layers: int, found: dict[int, attention.AttentionShape]) -> tuple[KvSpec, ...]:
    if not found:
        raise UnsupportedArchitecture(_own_attention(name))
    other = sorted(set(range(layers)) - set(found))
    if other:
        raise UnsupportedArchitecture(
            f"{name}: layers {', '.join(map(str, other))} keep no keys and values (state-space, linear attention or "
            "attention code of their own); an in-place KV cache cannot hold their state"
        )
    for index, shape in sorted(found.items()):
        if shape.key_dim != shape.value_dim:
            raise UnsupportedArchitecture(
                f"{name}: in layer {index} keys have {shape.key_dim} dimensions a head and values {shape.value_dim} "
                "(latent attention); the cache operator needs them equal"
            )
        if shape.key_dim % 8:
            raise UnsupportedArchitecture(
                f"{name}: in layer {index} a head has {shape.key_dim} dimensions; the cache operator needs a multiple of 8"
            )
        if shape.query_heads % shape.kv_heads:
            raise UnsupportedArchitecture(
                f"{name}: in layer {index} {shape.query_heads} query heads do not share {shape.kv_heads} KV heads evenly"
            )
    return tuple(KvSpec(kv_heads=s.kv_heads, head_dim=s.key_dim) for _, s in sorted(found.items()))


def max_positions(config: PreTrainedConfig) -> int:
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        raise UnsupportedArchitecture(f"{config.model_type} does not say how many positions it has")
    limit = int(positions)
    rotary = getattr(config, "rope_parameters", None) or {}
    # One dictionary, or one by kind of layer.
    for parameters in (rotary, *(v for v in rotary.values() if isinstance(v, dict))):
        if parameters.get("rope_type") in _LENGTH_DEPENDENT_ROTARY:
            original = parameters.get("original_max_position_embeddings")
            limit = min(limit, int(original or getattr(config, "original_max_position_embeddings", None) or limit))
    return limit


def fix_rotary(model: PreTrainedModel) -> None:
    """Take out what changes rotary frequencies with the length; within `Survey.max_length` they are the first ones."""
    module: Any
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        if isinstance(kind, dict):
            module.rope_type = {name: _fixed(each) for name, each in kind.items()}
        elif isinstance(kind, str):
            module.rope_type = _fixed(kind)


def _fixed(kind: str) -> str:
    return "default" if kind in _LENGTH_DEPENDENT_ROTARY else kind


def _own_attention(name: str) -> str:
    return f"{name} has attention code of its own, outside transformers' attention interface"
