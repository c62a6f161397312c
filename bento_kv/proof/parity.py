"""The reference: the unpatched torch model, with transformers' own attention, masks and cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.pytorch_utils import Conv1D

from bento_kv.contract.manifest import Manifest
from bento_kv.contract.reference import LayerArrays
from bento_kv.errors import SourceError, VerificationError, first_line
from bento_kv.source import ModelSource


class TorchReference:
    """What the decoder should have computed.

    Args:
        source: where the weights are; what the manifest names unless another is given.
        manifest: of the decoder under test; None where it has none, and nothing says which weights it was made from.

    Raises:
        SourceError: the source is not there.
        VerificationError: it holds other weights than those the decoder was exported from.
    """

    def __init__(self, source: str, manifest: Manifest | None) -> None:
        revision = manifest.source.revision if manifest and source == manifest.source.id else None
        found = ModelSource.find(source, revision=revision)
        if manifest and found.weights_sha256() != manifest.source.weights_sha256:
            raise VerificationError(
                f"{source} has other weights than those the decoder was exported from ({manifest.source.id}); "
                "give the right --reference, or export again"
            )
        # Loaded here as any user would, and not by the exporter's code, whose mistakes it is to find.
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                found.path, dtype=torch.float32, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # safetensors, pickle and torch each raise their own
            raise SourceError(f"{source}: the reference cannot be loaded: {error}") from error
        self._model = model.eval()
        self._source = found

    @cached_property
    def _tokenizer(self) -> Any:
        """Loaded when text is compared: numbers need none."""
        try:
            return AutoTokenizer.from_pretrained(self._source.path, trust_remote_code=False)
        except Exception as error:  # transformers raises nearly anything here, from OSError to KeyError
            raise SourceError(f"{self._source.id}: its tokenizer cannot be loaded: {first_line(error)}") from error

    @property
    def max_length(self) -> int | None:
        """Positions that the model's configuration speaks of."""
        config = self._model.config.get_text_config(decoder=True)
        positions: int | None = getattr(config, "max_position_embeddings", None)
        return positions

    @torch.inference_mode()
    def logits(
        self, ids: Sequence[int], *, at: Sequence[int] | None = None, past: LayerArrays | None = None
    ) -> NDArray[np.float32]:
        """Logits `[tokens, vocab_size]`, computed at once; see `NumericReference`."""
        first = past[0][0].shape[1] if past else 0
        known = self._model.get_input_embeddings().num_embeddings
        if max(ids) >= known:
            raise SourceError(
                f"{self._source.id} has {known} tokens, and the decoder more: it is not what the decoder was exported from"
            )
        out = self._run(
            input_ids=torch.tensor([list(ids)]),
            position_ids=torch.arange(first, first + len(ids))[None],
            past_key_values=None if past is None else _cache_of(past),
            use_cache=past is not None,
            logits_to_keep=0 if at is None else torch.tensor(list(at)),
        )[0]
        logits: NDArray[np.float32] = out.numpy()
        return logits

    @torch.inference_mode()
    def at_offsets(self, ids: Sequence[int], firsts: Sequence[int]) -> NDArray[np.float32]:
        """Logits `[places, tokens, vocab_size]`, all places in one batch; see `NumericReference`."""
        out = self._run(
            input_ids=torch.tensor([list(ids)] * len(firsts)),
            position_ids=torch.tensor(list(firsts))[:, None] + torch.arange(len(ids)),
            use_cache=False,
        )
        logits: NDArray[np.float32] = out.numpy()
        return logits

    @torch.inference_mode()
    def keys_values(self, ids: Sequence[int]) -> LayerArrays:
        """What transformers' cache holds after `ids`, by layer: `[kv_heads, tokens, head_dim]`."""
        # Without the configuration every layer keeps all positions, those with a sliding window too.
        cache: Any = DynamicCache()
        self._run(input_ids=torch.tensor([list(ids)]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return [(layer.keys[0].numpy(), layer.values[0].numpy()) for layer in cache.layers]

    def _run(self, **inputs: Any) -> torch.Tensor:
        try:
            logits: torch.Tensor = self._model(**inputs).logits
        except (IndexError, RuntimeError, ValueError) as error:  # such as a table of positions that ends
            shape = list(inputs["input_ids"].shape)
            raise SourceError(f"{self._source.id} itself cannot compute {shape} tokens: {first_line(error)}") from error
        return logits

    def weight(self, name: str) -> NDArray[np.float32]:
        """A matrix `[out_features, in_features]`; see `WeightReference`."""
        try:
            parameter = self._model.get_parameter(name)
            owner = self._model.get_submodule(name.rpartition(".")[0])
        except AttributeError:
            raise VerificationError(f"{self._source.id} has no parameter {name}, which the manifest names") from None
        # GPT-2's own linear layer keeps its matrix the other way round.
        matrix: NDArray[np.float32] = parameter.detach().numpy()
        return matrix.T if isinstance(owner, Conv1D) else matrix

    @property
    def parameters(self) -> int:
        """How many numbers its weights are, tied ones once."""
        count: int = self._model.num_parameters()
        return count

    def operations(self, tokens: int) -> float:
        """Two for every weight and token, and what attention costs; experts that sit out are counted too."""
        config = self._model.config.get_text_config(decoder=True)
        attention = 2 * config.num_hidden_layers * config.hidden_size * tokens**2
        return float(2 * self.parameters * tokens + attention)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids as transformers gives them, with or without special tokens around the text."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of token ids, spaces cleaned up or not as the model says."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str | None:
        """The chat template's rendering, None if there is no template or it refuses the messages."""
        if not self._tokenizer.chat_template:
            return None
        try:
            text: str = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except Exception:  # noqa: BLE001 - a program of the model's may raise anything, and the served side refuses
            return None
        return text

    @property
    def special_tokens(self) -> Sequence[str]:
        """Every token that is not made of what stands around it: the special ones, and others that were added."""
        tokens: list[str] = [*self._tokenizer.all_special_tokens, *self._tokenizer.get_added_vocab()]
        return list(dict.fromkeys(tokens))


def _cache_of(past: LayerArrays) -> DynamicCache:
    cache: Any = DynamicCache()
    for layer, (keys, values) in enumerate(past):
        cache.update(torch.from_numpy(keys)[None], torch.from_numpy(values)[None], layer)
    filled: DynamicCache = cache
    return filled
