"""The quality gate: how far a decoder's predictions are from the reference's, measured the way it is served.

What quantization does to logits cannot be told from a fault by a tolerance, and perplexity alone hides what cancels out.
So three numbers, each for positions that a prefill step computed and for positions decoded one by one behind a prefilled
prompt, the text being fed in both; prefill and decoding may run through different weights.

- `quality-kl`: mean Kullback-Leibler divergence of the decoder's next-token distribution from the reference's, in nats a
  token. It is the field's measure of a quantization; llama.cpp reports it (`llama-perplexity --kl-divergence`).
- `quality-top1`: how often the decoder prefers another token where the reference is decided, that is, gives its first
  token at least twice the probability of its second. Between tokens as good as tied, as nearly everywhere in a model of
  random weights, a change of mind is no loss. Fewer than `_FEWEST` such positions count as so many, or a single one
  would decide.
- `quality-perplexity`: change of the text's perplexity, as the magnitude of ln(PPL(decoder) / PPL(reference)).

Limits stand between what the bits cost a healthy small model and what too few bits cost any. For Llama 3 8B, llama.cpp
(pull request 6936) measured mean divergences of 0.0014 with 8 bits (q8_0), 0.005 with 6 (q6_K) and 0.03 with 4 (q4_K_M),
and 0.0004, 0.003 and 0.03 for the logarithm of the perplexity's ratio; with 2 bits (q2_K) the latter is 0.45. Smaller
models lose more, and any model more on text that it does not expect: the demo, of 1.6 million parameters, whose training
text is nothing like these passages, diverges on them by 0.001 with 8 bits, 0.07 to 0.17 with 4 (by block size and
method), 0.5 with 3 and 2 with 2. SmolLM2-135M-Instruct, trained by others, loses 0.066 with 8 bits as they are and 0.010
rotated, 0.31 with 4 bits rounded to nearest (perplexity x 1.33) and 0.09 by the default method (x 1.08): of each pair the
first is what a limit must not let pass. A random model, as tests have them, diverges little whatever is done to it: what is
proven there is proven by comparing weights and the float twin (`twin.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from bento_kv.contract.checks import at_most
from bento_kv.contract.decoder import Decoder
from bento_kv.contract.manifest import Manifest
from bento_kv.contract.plan import StepPlan, StepRow
from bento_kv.contract.precision import PRECISIONS, PrecisionTraits
from bento_kv.contract.reference import NumericReference
from bento_kv.contract.remedies import Remedy, remedies_of
from bento_kv.contract.verification import Check
from bento_kv.errors import BentoKVError
from bento_kv.proof.effort import TEXT_LENGTH, TEXTS_TOGETHER
from bento_kv.proof.passages import CONVERSATIONS, PASSAGES

_FEWEST = 100
_DECIDED = float(np.log(2.0))
_AT_ONCE = 16  # positions compared at once, in float64, as vocabularies are large
_SHORTEST = 8

Logits = NDArray[np.float32]


class TextEncoder(Protocol):
    """What the served tokenizer does for the probe text."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str: ...


@dataclass(slots=True)
class Divergence:
    """What was seen of one kind of positions, a number for each.

    Attributes:
        kl: divergence from the reference, in nats.
        decided: the reference is.
        other: the decoder's first token is another.
        gained: log-probability of the text's next token, the reference's less the decoder's, where there is one.
        surprise: of the reference by that token, in nats.
    """

    kl: list[float] = field(default_factory=list)
    decided: list[bool] = field(default_factory=list)
    other: list[bool] = field(default_factory=list)
    gained: list[float] = field(default_factory=list)
    surprise: list[float] = field(default_factory=list)

    def see(self, got: Logits, expected: Logits, following: Sequence[int]) -> None:
        """Compare logits `[n, vocab_size]` of n positions; `following` are the text's next tokens, the last may lack."""
        for at in range(0, len(got), _AT_ONCE):
            ours, theirs = _log_softmax(got[at : at + _AT_ONCE]), _log_softmax(expected[at : at + _AT_ONCE])
            # What the reference gives no probability at all takes no part: 0 * log(0) is 0.
            with np.errstate(invalid="ignore"):
                terms = np.where(theirs > -np.inf, np.exp(theirs) * (theirs - ours), 0.0)
            self.kl.extend(terms.sum(axis=-1).tolist())
            first_two = np.partition(theirs, -2, axis=-1)[:, -2:]
            self.decided.extend((first_two[:, 1] - first_two[:, 0] >= _DECIDED).tolist())
            self.other.extend((ours.argmax(axis=-1) != theirs.argmax(axis=-1)).tolist())
            tokens = list(following[at : at + len(ours)])
            rows = np.arange(len(tokens))
            self.gained.extend((theirs[rows, tokens] - ours[rows, tokens]).tolist())
            self.surprise.extend((-theirs[rows, tokens]).tolist())

    def checks(
        self, phase: Literal["prefill", "decode"], traits: PrecisionTraits, remedies: Sequence[Remedy] = ()
    ) -> Iterator[Check]:
        """The three checks of a phase of a decoder of some precision, and what may mend those that fail."""
        limits = traits.quality
        kl = np.array(self.kl)
        mean = float(kl.mean()) if len(kl) else float("nan")
        decided, other = np.array(self.decided, bool), np.array(self.other, bool)
        changed = int((decided & other).sum())
        ratio = float(np.mean(self.gained)) if self.gained else float("nan")
        places = f"{len(kl)} positions of probe text, computed in {'decode' if phase == 'decode' else 'prefill'} steps"
        yield at_most(
            f"quality-kl-{phase}",
            mean,
            limits.kl,
            f"mean divergence (KL) from the reference in nats a token, over {places}{_spread(kl)}",
            remedies,
        )
        yield at_most(
            f"quality-top1-{phase}",
            changed / max(int(decided.sum()), _FEWEST) if len(kl) else float("nan"),
            limits.top1,
            f"share of positions with another likeliest token, where the reference is decided: {changed} of "
            f"{int(decided.sum())} (taken as {_FEWEST} at least); of all {len(kl)}, {int(other.sum())}",
            remedies,
        )
        yield at_most(
            f"quality-perplexity-{phase}",
            abs(ratio),
            limits.perplexity,
            f"change of the perplexity of the probe text, as a logarithm: it was "
            f"{np.exp(np.mean(self.surprise)) if self.surprise else np.nan:.4g} and is multiplied by {np.exp(ratio):.4f}",
            remedies,
        )


def probe_sequences(encoder: TextEncoder, room: int) -> list[list[int]]:
    """Token ids of the probe text, of every kind among the first few; chats only where there is a template for them.

    Args:
        encoder: the served tokenizer.
        room: positions of the decoder.
    """
    chats = [_chat(encoder, messages, answer) for messages, answer in CONVERSATIONS]
    texts = [encoder.encode(text) for text in PASSAGES]
    found = []
    for number, text in enumerate(texts):
        # Prose, a chat, code and other languages come first: of a large model no more than these may be computed.
        found += [text, *(chats[number // 2 : number // 2 + 1] if number % 2 == 0 else [])]
    limit = min(TEXT_LENGTH, room)
    # The end of a chat has the answer, the beginning of a text what the model wants before it.
    return [ids[:limit] for ids in found if min(len(ids), limit) >= min(_SHORTEST, room)]


def _chat(encoder: TextEncoder, messages: Sequence[Mapping[str, str]], answer: str) -> list[int]:
    try:
        return encoder.encode(encoder.render_chat(messages) + answer, add_special_tokens=False)
    except BentoKVError:  # no template, or one that does not take these roles
        return []


def check_quality(
    decoder: Decoder, reference: NumericReference, sequences: Sequence[Sequence[int]], manifest: Manifest
) -> list[Check]:
    """What `measure` finds, held to the limits of the decoder's precision."""
    prefilled, decoded = measure(decoder, reference, sequences)
    traits = PRECISIONS[manifest.coarsest]
    return [
        *prefilled.checks("prefill", traits, remedies_of(manifest, "prefill")),
        *decoded.checks("decode", traits, remedies_of(manifest, "decode")),
    ]


def measure(
    decoder: Decoder, reference: NumericReference, sequences: Sequence[Sequence[int]]
) -> tuple[Divergence, Divergence]:
    """Every sequence: its first half prefilled in one step, then decoded token by token, all logits compared.

    Args:
        decoder: as it serves; as many of its slots as are decoded together are used.
        reference: of the same weights, in fp32.
        sequences: token ids, each of two at least.

    Returns:
        Of the positions that were prefilled, and of those that were decoded.
    """
    prefilled, decoded = Divergence(), Divergence()
    together = min(TEXTS_TOGETHER, decoder.slots)
    for at in range(0, len(sequences), together):
        _compare(decoder, reference, sequences[at : at + together], prefilled, decoded)
    return prefilled, decoded


def _compare(
    decoder: Decoder,
    reference: NumericReference,
    group: Sequence[Sequence[int]],
    prefilled: Divergence,
    decoded: Divergence,
) -> None:
    """Of sequences that fit in the slots; each is prefilled alone, and they are decoded in shared steps."""
    prompts = [len(ids) // 2 for ids in group]
    expected: list[Logits] = []  # after each token behind the prompt
    for slot, (ids, prompt) in enumerate(zip(group, prompts, strict=True)):
        theirs = reference.logits(ids)
        prefilled.see(decoder.step(StepPlan([StepRow(slot, ids[:prompt], 0, prompt)])), theirs[:prompt], ids[1:])
        expected.append(theirs[prompt:].copy())
    for step in range(max(len(ids) - prompt for ids, prompt in zip(group, prompts, strict=True))):
        rows = [
            StepRow(slot, ids[prompt + step : prompt + step + 1], prompt + step)
            for slot, (ids, prompt) in enumerate(zip(group, prompts, strict=True))
            if prompt + step < len(ids)
        ]
        for row, logits in zip(rows, decoder.step(StepPlan(rows)), strict=True):
            following = group[row.slot][row.start + 1 : row.start + 2]
            decoded.see(logits[None], expected[row.slot][step][None], following)


def _log_softmax(logits: Logits) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


def _spread(kl: NDArray[np.float64]) -> str:
    if not len(kl) or not np.isfinite(kl).all():
        return ""
    median, most, largest = np.quantile(kl, [0.5, 0.99, 1.0])
    return f"; median {median:.2g}, 99 of 100 below {most:.2g}, largest {largest:.2g}"
