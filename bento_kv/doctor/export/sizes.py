"""Which sizes a graph takes in truth, whatever it declares: rows, tokens and past lengths, one varied at a time."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from bento_kv.doctor.faults import ExportFaultId
from bento_kv.doctor.records import Finding, GraphAxis
from bento_kv.errors import DecoderError
from bento_kv.runtime.graph import Cache, CachedGraph

ROWS, TOKENS, PASTS = (1, 2, 3), (7, 3, 2, 1), (7, 3, 2, 1)
_NODE = re.compile(r"running (\w+) node\. Name:'([^']*)'")
# Where in its sources the runtime complains; the line's number is no size.
_LINE = re.compile(r"\S+\.(?:h|cc|cpp):\d+")
_LARGEST_HINT, _MOST_HINTS = 512, 10
# What the runtime says where tensors do not fit together; the second number is the one that was expected.
_SHAPES = re.compile(r"(?i)shape|dimension|broadcast|expand|invalid index|out of (data )?bounds|indices")
_CONCAT = re.compile(r"[Aa]xis (\d) has mismatched dimensions of (\d+) and (\d+)")


@dataclass(frozen=True, slots=True)
class RunSizes:
    """Of one run."""

    rows: int
    tokens: int
    past: int

    def __str__(self) -> str:
        return f"{self.rows} rows of {self.tokens} tokens with a past of {self.past}"


@dataclass(slots=True)
class Accepted:
    """What was tried: sizes, and the runtime's complaint about them if it had one."""

    complaints: dict[RunSizes, str | None] = field(default_factory=dict)

    def works(self, sizes: RunSizes) -> bool:
        return sizes in self.complaints and self.complaints[sizes] is None


class Acceptance:
    """Tries sizes on a graph. A past of zeros will do: only whether a run ends well is asked here.

    Args:
        graph: to try.
        vocab_size: token ids are below it.
    """

    def __init__(self, graph: CachedGraph, vocab_size: int) -> None:
        self._graph = graph
        self._vocab_size = vocab_size
        self.accepted = Accepted()
        # Behind a past it takes one token at a time: all that decoding needs, and what some exporters mean to make.
        self.one_token_steps = False

    def tries(self, sizes: RunSizes) -> bool:
        """Whether a run of these sizes ends well."""
        if sizes not in self.accepted.complaints:
            self.accepted.complaints[sizes] = self._run(sizes)
        return self.accepted.works(sizes)

    def _run(self, sizes: RunSizes) -> str | None:
        ids = np.arange(sizes.rows * sizes.tokens).reshape(sizes.rows, sizes.tokens) % self._vocab_size
        past = zeros(self._graph, sizes.rows, sizes.past)
        try:
            output = self._graph.run(ids.astype(np.int64), past)
        except DecoderError as error:
            return str(error)
        rows, tokens = output.logits.shape[:2]
        if rows != sizes.rows or tokens not in (1, sizes.tokens):
            return f"input: logits come out as {list(output.logits.shape)}"
        return None

    def findings(self, *, one_token_steps: bool, declared: Collection[GraphAxis | None]) -> list[Finding]:
        """What the graph does not take.

        Args:
            one_token_steps: steps with a past may be made for one token, because another graph takes the prompt.
            declared: axes known to be baked; what follows from them is not said again.
        """
        chunk = (1,) if one_token_steps else (1, 2, 3, 7)
        decode = self._star(RunSizes(1, 1, 7), chunk, PASTS)
        prefill = self._star(RunSizes(1, 7, 0), TOKENS, (0,))
        if decode is None:
            if declared:  # and nobody knows what other sizes that leaves
                return []
            return [self._nothing_runs() if prefill is None else self._no_past_runs()]
        findings = self._baked(decode, PASTS, chunk)
        if prefill is None:
            return (
                [*findings.values()]
                if "past" in {*declared, *findings}
                else [*findings.values(), self._zero_rejected()]
            )
        alone = self._baked(prefill, (0,), TOKENS)
        longer = [RunSizes(decode.rows, n, decode.past) for n in chunk if n > 1]
        if decode.tokens == 1 and "sequence" not in alone and not any(self.tries(sizes) for sizes in longer):
            self.one_token_steps = True
            findings.pop("sequence", None)
        # Only what the prefill shows besides.
        return [*{**alone, **findings}.values()]

    def findings_of_prompts(self) -> list[Finding]:
        """What a graph that is for step 0 alone, and takes no past, does not take."""
        prefill = self._star(RunSizes(1, 7, 0), TOKENS, (0,))
        return [self._nothing_runs()] if prefill is None else [*self._baked(prefill, (0,), TOKENS).values()]

    def _star(self, base: RunSizes, tokens: Sequence[int], pasts: Sequence[int]) -> RunSizes | None:
        """A base that works, with every axis varied around it; None if no base does."""
        candidates = [base, *(RunSizes(r, t, p) for r in ROWS for t in tokens for p in pasts)]
        found = next((sizes for sizes in candidates if self.tries(sizes)), None)
        found = found or next((sizes for sizes in self._hinted(base) if self.tries(sizes)), None)
        if found is not None:
            for rows in ROWS:
                self.tries(RunSizes(rows, found.tokens, found.past))
            for n in tokens:
                self.tries(RunSizes(found.rows, n, found.past))
            for past in pasts:
                self.tries(RunSizes(found.rows, found.tokens, past))
        return found

    def _hinted(self, base: RunSizes) -> Iterator[RunSizes]:
        """RunSizes of which the runtime's complaints speak: they name those that it wanted, among others."""
        said = " ".join(complaint or "" for complaint in self.accepted.complaints.values())
        numbers = {int(n) for n in re.findall(r"(?<![\w.])\d+(?![\w.])", _LINE.sub("", said))}
        hints = sorted(n for n in numbers if 0 < n <= _LARGEST_HINT)[:_MOST_HINTS]
        for rows in sorted({base.rows, *(n for n in hints if n not in ROWS)}):
            for tokens in sorted({base.tokens, *(hints if rows == base.rows else ()), *TOKENS}):
                if not base.past:
                    yield RunSizes(rows, tokens, 0)
                    continue
                # A baked total is past and new tokens together.
                pasts = {*hints, *(n - tokens for n in hints if n > tokens), base.past}
                yield from (RunSizes(rows, tokens, past) for past in sorted(pasts))

    def _baked(self, base: RunSizes, pasts: Sequence[int], tokens: Sequence[int]) -> dict[GraphAxis, Finding]:
        """By axis: it takes the base's size and not all others."""
        others: dict[GraphAxis, list[RunSizes]] = {
            "batch": [RunSizes(n, base.tokens, base.past) for n in ROWS if n != base.rows],
            "sequence": [RunSizes(base.rows, n, base.past) for n in tokens if n != base.tokens],
            "past": [RunSizes(base.rows, base.tokens, n) for n in pasts if n != base.past],
        }
        size: dict[GraphAxis, int] = {"batch": base.rows, "sequence": base.tokens, "past": base.past}
        findings: dict[GraphAxis, Finding] = {}
        for axis, tried in others.items():
            failed = [sizes for sizes in tried if not self.tries(sizes)]
            if failed and not self._op_wants_one_row(failed):
                findings[axis] = self._baked_finding(axis, size[axis], failed[0], base)
        return findings

    def _op_wants_one_row(self, failed: Sequence[RunSizes]) -> bool:
        """GroupQueryAttention takes several tokens with a past for one row at a time: its contract, and not a fault."""
        return all("batch_size must be 1 when sequence_length > 1" in (self._complaint(s)) for s in failed)

    def _complaint(self, sizes: RunSizes) -> str:
        return self.accepted.complaints.get(sizes) or ""

    def _baked_finding(self, axis: GraphAxis, size: int, failed: RunSizes, base: RunSizes) -> Finding:
        return Finding(
            id="dynamic-axis-baked",
            where=f"{_place(self._complaint(failed))}, {axis} axis",
            axis=axis,
            explain=f"The graph runs on {base} and not on {failed}: {_reason(self._complaint(failed))}. The {axis} size "
            f"{size} was fixed inside the graph when it was traced, whatever its inputs declare.",
            fix="Export again with that axis dynamic, from an example of sizes other than 0 and 1, which tracing takes "
            "for constants: `bento-kv repair FILE -o REPAIRED --reference SOURCE`.",
        )

    def _zero_rejected(self) -> Finding:
        complaint = self._complaint(RunSizes(1, 7, 0))
        return Finding(
            id="zero-length-past-rejected",
            where=f"{_place(complaint)}, past of length 0",
            explain=f"Step 0 has no past yet, and the graph does not run on an empty one: {_reason(complaint)}. A loop "
            "that works around it with a dummy position attends to keys that nobody computed, unless it masks them.",
            fix="Export again from an example with a past, its length dynamic: `bento-kv repair FILE -o REPAIRED "
            "--reference SOURCE`. Or export a second graph without past inputs for step 0.",
        )

    def _no_past_runs(self) -> Finding:
        complaint = self._complaint(RunSizes(1, 1, 7))
        axis = _CONCAT.search(complaint)
        # Along the time axis any length may be joined, so it is heads or head size that do not fit.
        id: ExportFaultId = "kv-shape-mismatch" if axis else "dynamic-axis-baked"
        return Finding(
            id=id,
            where=f"{_place(complaint)}, where the past is used",
            explain=f"Step 0 runs, and no step with a past does: {_reason(complaint)}.",
            fix="Export again: the cache inputs have to have the shapes that the graph's own keys and values have, and "
            "past and sequence have to be dynamic.",
        )

    def _nothing_runs(self) -> Finding:
        complaint = self._complaint(RunSizes(1, 7, 0))
        id: ExportFaultId = "kv-shape-mismatch" if _CONCAT.search(complaint) else "load-failed"
        if id == "load-failed" and _SHAPES.search(complaint):
            id = "dynamic-axis-baked"
        return Finding(
            id=id,
            where=_place(complaint),
            explain=f"The graph loads, and no step runs, of {len(self.accepted.complaints)} sizes tried: "
            f"{_reason(complaint)}.",
            fix="Export again, with batch, sequence and past dynamic; if the complaint names an operator, for this "
            "runtime and provider.",
        )


def zeros(graph: CachedGraph, rows: int, length: int) -> Cache:
    """A past of zeros."""
    return [
        (np.zeros((*k.shape[:2], length, k.shape[3]), k.dtype), np.zeros((*v.shape[:2], length, v.shape[3]), v.dtype))
        for k, v in graph.empty_cache(rows)
    ]


def _place(complaint: str) -> str:
    node = _NODE.search(complaint)
    if node:
        return f"{node[1]} {node[2]}"
    named = re.search(r"(?:for input|input:|Input) ?:?'?([\w.\-/]+)", complaint)
    return f"input {named[1]}" if named else "the graph"


def _reason(complaint: str) -> str:
    text = complaint.split(": ", 1)[-1]
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"Non-zero status code returned while running \w+ node\. Name:'[^']*' Status Message: ", "", text)
    text = re.sub(r"\S*/onnxruntime/\S+ [^,]{0,200}? (?=\S*[Cc]oncat|The |Attempting|\w+ )", "", text, count=1)
    return text[:300].rstrip(". ")
