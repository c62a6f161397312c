"""Train the demo model from scratch: `python -m recipes.demo.train --out DIR`.

Step `k` depends on the state after step `k - 1` and on data drawn from (seed, k), so a resumed run equals an uninterrupted one.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from recipes.demo import recipe, tokenizer
from recipes.demo.cases import case
from recipes.demo.text import Conversation, training_batch
from recipes.demo.workers import ATTENTION, Workers, microbatches, pad

CHECKPOINT = "checkpoint.pt"


def build(shape: recipe.Shape, seed: int) -> LlamaForCausalLM:
    """A fresh model in float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tokenizer.VOCAB_SIZE,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        intermediate_size=shape.feed_forward,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.END_ID,
        pad_token_id=tokenizer.PAD_ID,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation(ATTENTION)
    return model


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms.

    `match_rms_adamw` scales Muon's updates so that both share one learning rate.
    """
    named = list(model.named_parameters())
    matrices = [weight for name, weight in named if weight.ndim == 2 and "embed" not in name]
    others = [weight for name, weight in named if weight.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=0.0, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train_step(workers: Workers, updates: list[torch.optim.Optimizer], batch: list[Conversation], lr: float) -> float:
    """One update from one batch; the mean loss of an answer token."""
    answer_loss = workers.gradients(batch)
    torch.nn.utils.clip_grad_norm_(workers.model.parameters(), 1.0)
    for update in updates:
        for group in update.param_groups:
            group["lr"] = lr
        update.step()
        update.zero_grad(set_to_none=True)
    return answer_loss


@torch.no_grad()
def quick_accuracy(model: LlamaForCausalLM, longest: int, cases: int = 48) -> dict[str, float]:
    """Held-out accuracy by skill: whether greedy decoding would give exactly the answer, in one forward pass."""
    accuracy = {}
    for skill in ("recall", "alike", "unknown_code", "sums", "copy", "reverse", "count", "facts", "chat", "unknown"):
        drawn = [case(skill, index, longest) for index in range(cases)]
        right = 0
        for part in microbatches(drawn):
            ids, _ = pad(part)
            with torch.autocast("cpu", torch.bfloat16):
                best = model(input_ids=ids, use_cache=False).logits.argmax(-1)
            for row, conversation in enumerate(part):
                length, answer = len(conversation.encode()[0]), len(conversation.exchanges[-1].answer.encode()) + 1
                right += bool((best[row, length - answer - 1 : length - 1] == ids[row, length - answer : length]).all())
        accuracy[skill] = right / cases
    return accuracy


def save_checkpoint(
    directory: Path, model: LlamaForCausalLM, updates: list[torch.optim.Optimizer], step: int, seed: int
) -> None:
    """Write the state after `step` steps: beside, then renamed over, so that a crash leaves a whole checkpoint."""
    state = {
        "model": model.state_dict(),
        "updates": [each.state_dict() for each in updates],
        "step": step,
        "seed": seed,
    }
    beside = directory / (CHECKPOINT + ".new")
    torch.save(state, beside)
    os.replace(beside, directory / CHECKPOINT)


def load_checkpoint(directory: Path, model: LlamaForCausalLM, updates: list[torch.optim.Optimizer], seed: int) -> int:
    """Take up the state of a checkpoint; the number of steps done. ValueError if it was made with another seed."""
    state = torch.load(directory / CHECKPOINT, weights_only=True)
    if state["seed"] != seed:
        raise ValueError(f"the checkpoint in {directory} was made with seed {state['seed']}, not {seed}")
    model.load_state_dict(state["model"])
    for update, saved in zip(updates, state["updates"], strict=True):
        update.load_state_dict(saved)
    return int(state["step"])


def export(model: LlamaForCausalLM, directory: Path) -> None:
    """Write the files that ship, the weights in float16: beside, then each renamed over its older self."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as beside:
        half = LlamaForCausalLM(model.config).half()  # type: ignore[no-untyped-call]
        half.load_state_dict(model.state_dict())
        half.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, eos_token_id=tokenizer.END_ID, pad_token_id=tokenizer.PAD_ID
        )
        half.save_pretrained(beside)
        tokenizer.write(Path(beside))
        for file in sorted(Path(beside).iterdir()):
            file.chmod(0o644)
            os.replace(file, directory / file.name)


def train(
    out: Path,
    phases: tuple[recipe.Phase, ...] = recipe.PHASES,
    shape: recipe.Shape = recipe.SHAPE,
    seed: int = 0,
    steps: int | None = None,
    resume: bool = False,
    threads: int = 2,
    every: int = 100,
) -> LlamaForCausalLM:
    """Run the recipe, all of it or up to `steps` steps; checkpoints and, at the end, the model lie in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    model = build(shape, seed)
    updates = optimizers(model)
    done = load_checkpoint(out, model, updates, seed) if resume and (out / CHECKPOINT).exists() else 0
    workers = Workers(model, threads)
    whole = sum(phase.steps for phase in phases)
    last = whole if steps is None else min(steps, whole)
    bar = tqdm(range(done, last), initial=done, total=last, disable=not sys.stderr.isatty())
    losses: list[float] = []
    started = time.monotonic()
    for step in bar:
        phase, lr = recipe.phase_at(phases, step)
        batch = training_batch(seed, step, phase)
        losses.append(train_step(workers, updates, batch, lr))
        bar.set_postfix(loss=f"{losses[-1]:.3f}")
        if (step + 1) % every == 0 or step + 1 == last:
            save_checkpoint(out, model, updates, step + 1, seed)
            log(step + 1, losses, time.monotonic() - started, lr)
            if (step + 1) % (5 * every) == 0:
                export(model, out / "model")
                accuracy = quick_accuracy(model, min(500, phase.longest))
                tqdm.write(" ".join(f"{skill} {share:.2f}" for skill, share in accuracy.items()))
            losses.clear()
    export(model, out / "model")
    return model


def log(step: int, losses: list[float], seconds: float, lr: float) -> None:
    """One line for a terminal or a file."""
    tqdm.write(f"step {step} answer-loss {sum(losses) / len(losses):.4f} lr {lr:.2e} {seconds:.0f} s")
    sys.stdout.flush()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where checkpoints and the model go")
    parser.add_argument("--steps", type=int, default=None, help="stop after this many steps of the recipe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints and log lines")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out, if there is one")
    arguments = parser.parse_args()
    train(
        arguments.out,
        seed=arguments.seed,
        steps=arguments.steps,
        resume=arguments.resume,
        threads=arguments.threads,
        every=arguments.every,
    )


if __name__ == "__main__":
    main()
