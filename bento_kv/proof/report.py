"""A verification record for people: as text, and as a page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from bento_kv.contract.manifest import Manifest
from bento_kv.contract.spelling import advice, as_option
from bento_kv.contract.verification import Check, Verification

_TITLES = {"export": "Export layer: is the graph right?", "loop": "Loop layer: are the steps right?"}
# What may change no bit, and the checks that measure by how much it does.
_LAWS = (
    ("how a sequence is split into steps, mode full", "cached-equals-uncached-full"),
    ("how a sequence is split into steps, mode batch", "cached-equals-uncached-batch"),
    ("which neighbours share the steps, mode full", "alone-equals-together-full"),
    ("which neighbours share the steps, mode batch", "alone-equals-together-batch"),
    ("1 thread instead of as many as served", "threads-1"),
    ("2 threads instead of as many as served", "threads-2"),
)


def exactness(record: Verification) -> list[tuple[str, float]]:
    """What was varied on the machine of the proof, and by how much it changed a result; 0.0 is by no bit."""
    measured = {check.id: check.measured for proof in (record.export, record.loop) for check in proof.checks}
    return [(what, value) for what, id in _LAWS if (value := measured.get(id)) is not None]


def render(record: Verification) -> str:
    """The record as text: a line a check, failures explained, the verdict last."""
    return "\n".join(_lines(record)) + "\n"


def render_html(record: Verification, manifest: Manifest) -> str:
    """The record as one HTML page, without scripts or anything to load."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    layers = [(_TITLES[name], proof) for name, proof in (("export", record.export), ("loop", record.loop))]
    name = Path(manifest.source.id).name
    return template.render(
        record=record,
        manifest=manifest,
        layers=layers,
        name=name,
        number=_number,
        exactness=exactness(record),
        advice=lambda check: advice(check.remedies, as_option),
    )


def _lines(record: Verification) -> Iterator[str]:
    for name, proof in (("export", record.export), ("loop", record.loop)):
        yield _TITLES[name]
        if not proof.checks:
            yield "  not reached"
        for check in proof.checks:
            yield f"  {'ok  ' if check.passed else 'FAIL'} {check.id:<30} {_number(check.measured):>9} {_limit(check)}"
            if not check.passed:
                yield f"       {check.explain}"
                yield from (f"       may mend it: {line}" for line in advice(check.remedies, as_option))
    if found := exactness(record):
        yield "Exactness: what changes a bit on this machine, and by how much"
    for what, value in found:
        yield f"  {'no  ' if value == 0.0 else 'yes '} {what:<48} {'' if value == 0.0 else _number(value)}".rstrip()
    failed = sum(not check.passed for proof in (record.export, record.loop) for check in proof.checks)
    verdict = "passed" if record.passed else f"FAILED, {failed} of its checks"
    yield f"Proof {verdict}, in {record.seconds} s on {record.machine.get('processor') or 'this machine'}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value == int(value) and value < 1e6 else f"{value:.1e}"


def _limit(check: Check) -> str:
    return "" if check.limit is None else f"<= {check.limit:g}"
