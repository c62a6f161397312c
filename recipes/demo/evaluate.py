"""Held-out accuracy of a demo model: `python -m recipes.demo.evaluate [--model DIR] [--precision P] [--cases N] [--json]`.

The 16-bit weights are read into float32 and decoded greedily through the chat template; an answer counts if it is exact.
A directory that holds an exported decoder is decoded as the service would; with `--precision` the model is exported first.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bento_kv.contract.files import MANIFEST_FILE
from bento_kv.demo import path
from bento_kv.export.exporter import export
from recipes.demo.cases import JUDGED, LITERALS, case, literal
from recipes.demo.served import DecoderAnswerer
from recipes.demo.text import Conversation

BATCH_ROWS = 16
SHOWN_MISSES = 3


@dataclass(frozen=True)
class Outcome:
    """One judged case: what was asked for, and what the model said."""

    skill: str
    conversation: Conversation
    prompt_tokens: int
    said: str

    @property
    def expected(self) -> str:
        """The right answer."""
        return self.conversation.exchanges[-1].answer

    @property
    def right(self) -> bool:
        """Whether the model said exactly that."""
        return self.said == self.expected


class Answerer:
    """A model and its tokenizer, for greedy answers to batches of chats."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(directory, padding_side="left")
        self.model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)

    @torch.no_grad()
    def answers(self, chats: list[list[dict[str, str]]]) -> list[tuple[str, int]]:
        """For each chat the answer, and how many tokens its prompt has."""
        prompts = [
            self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats
        ]
        encoded = self.tokenizer(prompts, return_tensors="pt", padding=True)
        out = self.model.generate(**encoded, max_new_tokens=128, do_sample=False)
        said = self.tokenizer.batch_decode(out[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
        return list(zip(said, encoded["attention_mask"].sum(1).tolist(), strict=True))


class Answers(Protocol):
    """Whatever answers chats."""

    def answers(self, chats: list[list[dict[str, str]]]) -> list[tuple[str, int]]:
        """For each chat the answer, and how many tokens its prompt has."""
        ...


def open_answerer(directory: Path, precision: str | None, scratch: Path) -> Answers:
    """What answers for a model's directory or a decoder's.

    Args:
        directory: of either.
        precision: export the model with it, and let the decoder answer.
        scratch: an empty directory, for that decoder.
    """
    if precision is not None:
        export(str(directory), scratch / precision, precision=precision)
        directory = scratch / precision
    return DecoderAnswerer(directory, BATCH_ROWS) if (directory / MANIFEST_FILE).is_file() else Answerer(directory)


def evaluate(answerer: Answers, cases: Iterable[tuple[str, Conversation]]) -> list[Outcome]:
    """Answer every case, those of like length together."""
    ordered = sorted(cases, key=lambda each: len(each[1].encode()[0]))
    outcomes = []
    for start in range(0, len(ordered), BATCH_ROWS):
        rows = ordered[start : start + BATCH_ROWS]
        replies = answerer.answers([conversation.messages()[:-1] for _, conversation in rows])
        for (skill, conversation), (said, prompt_tokens) in zip(rows, replies, strict=True):
            outcomes.append(Outcome(skill, conversation, prompt_tokens, said))
    return outcomes


def held_out_cases(cases: int, skills: Iterable[str] = JUDGED) -> list[tuple[str, Conversation]]:
    """`cases` cases of each skill, and the literal prompts."""
    drawn = [(skill, case(skill, index)) for skill in skills for index in range(cases)]
    return drawn + [("literal", literal(prompt, answer)) for prompt, answer in LITERALS]


def summary(outcomes: list[Outcome], group: Callable[[Outcome], str]) -> dict[str, dict[str, Any]]:
    """For each group of outcomes: how many, the share that is right, and a few misses."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(group(outcome), []).append(outcome)
    rows = {}
    for name, members in sorted(groups.items()):
        misses = [
            {"asked": each.conversation.exchanges[-1].user[-120:], "expected": each.expected, "said": each.said}
            for each in members
            if not each.right
        ]
        accuracy = sum(each.right for each in members) / len(members)
        rows[name] = {"n": len(members), "accuracy": accuracy, "misses": misses[:SHOWN_MISSES]}
    return rows


def report(outcomes: list[Outcome]) -> dict[str, dict[str, dict[str, Any]]]:
    """The tables: by skill, and recall by the length of the prompt and by the number of codes in it."""
    recall = [outcome for outcome in outcomes if outcome.skill == "recall"]
    return {
        "skill": summary(outcomes, lambda outcome: outcome.skill),
        "recall by prompt tokens": summary(recall, lambda outcome: _span(outcome.prompt_tokens, 64)),
        "recall by codes told": summary(recall, lambda outcome: _span(codes_told(outcome.conversation), 3)),
    }


def codes_told(conversation: Conversation) -> int:
    """How many codes stand in the user's messages."""
    words = " ".join(exchange.user for exchange in conversation.exchanges).replace(".", " ").split()
    return sum(word.isdigit() and 3 <= len(word) <= 5 for word in words)


def _span(number: int, width: int) -> str:
    low = (number - 1) // width * width + 1
    return f"{low:3d} to {low + width - 1:3d}"


def print_tables(tables: dict[str, dict[str, dict[str, Any]]]) -> None:
    """The tables as text."""
    for title, rows in tables.items():
        print(f"{title:24} {'n':>5} {'accuracy':>9}  misses")
        for name, row in rows.items():
            print(f"  {name:22} {row['n']:5d} {row['accuracy']:9.3f}")
            for miss in row["misses"] if title == "skill" else ():
                print(f"{'':42}{miss['asked']!r} -> {miss['said']!r}, not {miss['expected']!r}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", type=Path, default=path(), help="the model's directory, or a decoder's; the embedded one by default"
    )
    parser.add_argument("--precision", help="export the model with this precision, and evaluate the decoder")
    parser.add_argument("--cases", type=int, default=200, help="cases of each skill")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="bento_kv-") as scratch:
        answerer = open_answerer(arguments.model, arguments.precision, Path(scratch))
        tables = report(evaluate(answerer, held_out_cases(arguments.cases)))
    if arguments.json:
        print(json.dumps(tables, indent=2))
    else:
        print_tables(tables)


if __name__ == "__main__":
    main()
