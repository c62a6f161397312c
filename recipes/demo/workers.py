"""Gradients of one batch, on several threads: padding, the loss, and the work shared out."""

import copy
from concurrent.futures import ThreadPoolExecutor

import torch
from torch.nn import functional
from transformers import AttentionInterface, LlamaForCausalLM

from recipes.demo import tokenizer
from recipes.demo.text import Conversation

PROMPT_WEIGHT = 0.1  # of a prompt token's loss; an answer token's is 1
PADDED_TOKENS = 1024  # in one forward pass at most, unless one conversation is longer
ATTENTION = "folded"


def folded_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [rows, heads, length, head_dim]
    key: torch.Tensor,  # [rows, kv_heads, length, head_dim]
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention in bfloat16, the heads of a group folded into the length: on a CPU, far faster backwards than sdpa."""
    rows, heads, length, size = query.shape
    groups = key.shape[1]
    with torch.autocast("cpu", enabled=False):
        folded = (query * scaling).reshape(rows * groups, -1, size).bfloat16()
        keys = key.reshape(rows * groups, length, size).bfloat16()
        values = value.reshape(rows * groups, length, size).bfloat16()
        future = torch.full((length, length), float("-inf"), dtype=torch.bfloat16).triu(1).repeat(heads // groups, 1)
        scores = torch.baddbmm(future.expand(rows * groups, -1, -1), folded, keys.transpose(1, 2))
        mixed = torch.bmm(scores.softmax(-1), values).view(rows, heads, length, size)
    return mixed.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, folded_attention)


def pad(conversations: list[Conversation]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and loss weights, both [rows, length]; padding is on the right, where causal attention never sees it."""
    encoded = [conversation.encode() for conversation in conversations]
    longest = max(len(ids) for ids, _ in encoded)
    ids = torch.full((len(encoded), longest), tokenizer.PAD_ID)
    weights = torch.zeros(len(encoded), longest)
    for row, (tokens, answered) in enumerate(encoded):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        weights[row, : len(tokens)] = torch.where(torch.tensor(answered), 1.0, PROMPT_WEIGHT)
    return ids, weights


def microbatches(batch: list[Conversation]) -> list[list[Conversation]]:
    """The batch by length, cut so that little padding is computed."""
    cut: list[list[Conversation]] = []
    for conversation in sorted(batch, key=lambda each: -len(each.encode()[0])):
        if not cut or len(cut[-1][0].encode()[0]) * (len(cut[-1]) + 1) > PADDED_TOKENS:
            cut.append([])
        cut[-1].append(conversation)
    return cut


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted sum of next-token losses, and the plain sum over answer tokens alone."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits
    losses = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    weights = weights[:, 1:].flatten()
    return (losses * weights).sum(), losses.detach()[weights == 1].sum()


class Workers:
    """Replicas of one model that share its weights, each with gradients and a thread of its own.

    One thread per core, joined once a step, loses less to other work on the machine than one operation spread over all
    cores, which waits for the slowest core thousands of times a step. The split of work is fixed, and so are the sums.
    """

    def __init__(self, model: LlamaForCausalLM, count: int) -> None:
        self.model = model
        self.replicas = [model] + [copy.deepcopy(model) for _ in range(count - 1)]
        for replica in self.replicas[1:]:
            for mine, theirs in zip(replica.parameters(), model.parameters(), strict=True):
                mine.data = theirs.data
        self.pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))

    def gradients(self, batch: list[Conversation]) -> float:
        """Leave the gradient of the batch's mean weighted loss in the model; the mean loss of an answer token."""
        padded = [pad(part) for part in microbatches(batch)]
        total = float(sum(weights[:, 1:].sum() for _, weights in padded))
        answers = sum(int((weights[:, 1:] == 1).sum()) for _, weights in padded)
        loads: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in self.replicas]
        for part in sorted(padded, key=lambda each: -each[0].numel()):
            min(loads, key=lambda load: sum(ids.numel() for ids, _ in load)).append(part)
        jobs = [
            self.pool.submit(_run, replica, load, total) for replica, load in zip(self.replicas, loads, strict=True)
        ]
        losses = [job.result() for job in jobs]
        for replica in self.replicas[1:]:
            for mine, theirs in zip(self.model.parameters(), replica.parameters(), strict=True):
                if theirs.grad is not None:
                    mine.grad = theirs.grad if mine.grad is None else mine.grad + theirs.grad
                    theirs.grad = None
        return sum(losses) / answers


def _run(model: LlamaForCausalLM, load: list[tuple[torch.Tensor, torch.Tensor]], total: float) -> float:
    answer_loss = 0.0
    for ids, weights in load:
        loss, part = loss_of(model, ids, weights)
        (loss / total).backward()  # type: ignore[no-untyped-call]
        answer_loss += float(part)
    return answer_loss
