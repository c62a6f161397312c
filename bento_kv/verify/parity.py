"""The reference: the unpatched torch model, with transformers' own attention, masks and cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from bento_kv.errors import SourceError, VerificationError
from bento_kv.manifest import Manifest
from bento_kv.source import ModelSource
from bento_kv.verify.numeric import LayerArrays


class TorchReference:
    """What the decoder should have computed.

    Args:
        source: where the weights are; what the manifest names unless another is given.
        manifest: of the decoder under test.

    Raises:
        SourceError: the source is not there.
        VerificationError: it holds other weights than those the decoder was exported from.
    """

    def __init__(self, source: str, manifest: Manifest) -> None:
        revision = manifest.source.revision if source == manifest.source.id else None
        found = ModelSource.find(source, revision=revision)
        if found.weights_sha256() != manifest.source.weights_sha256:
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
        self._tokenizer: Any = AutoTokenizer.from_pretrained(found.path, trust_remote_code=False)

    @torch.inference_mode()
    def logits(self, ids: Sequence[int], *, first: int = 0, last: int = 0) -> NDArray[np.float32]:
        """Logits computed at once without a cache: `[tokens, vocab_size]`.

        Args:
            ids: of a sequence.
            first: position of its first token.
            last: of how many last tokens the logits are wanted; 0 is all.
        """
        out: torch.Tensor = self._model(
            input_ids=torch.tensor([list(ids)]),
            position_ids=torch.arange(first, first + len(ids))[None],
            use_cache=False,
            logits_to_keep=last,
        ).logits[0]
        logits: NDArray[np.float32] = out.numpy()
        return logits

    @torch.inference_mode()
    def keys_values(self, ids: Sequence[int]) -> LayerArrays:
        """What transformers' cache holds after `ids`, by layer: `[kv_heads, tokens, head_dim]`."""
        # Without the configuration every layer keeps all positions, those with a sliding window too.
        cache: Any = DynamicCache()
        self._model(input_ids=torch.tensor([list(ids)]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return [(layer.keys[0].numpy(), layer.values[0].numpy()) for layer in cache.layers]

    def encode(self, text: str) -> list[int]:
        """Token ids as transformers gives them, special tokens around the text included."""
        ids: list[int] = self._tokenizer(text)["input_ids"]
        return ids

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str | None:
        """The chat template's rendering, None if there is no template or it refuses the messages."""
        if not self._tokenizer.chat_template:
            return None
        try:
            text: str = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError, KeyError):  # as the served side refuses
            return None
        return text

    @property
    def special_tokens(self) -> Sequence[str]:
        tokens: list[str] = self._tokenizer.all_special_tokens
        return tokens
