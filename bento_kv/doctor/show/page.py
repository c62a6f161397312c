"""A diagnosis as one HTML page that loads nothing: the same words as the text, and pictures of the numbers."""

from __future__ import annotations

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bento_kv.doctor.faults import FAULTS, FaultId, Part
from bento_kv.doctor.records import Diagnosis, Finding, StepError, Verdict
from bento_kv.doctor.show.pictures import chart, heat_map, scale, sides, strip
from bento_kv.doctor.show.shown import Gap, beyond, cells, harmless, headline, is_command, number, worst


def render_html(diagnosis: Diagnosis) -> str:
    """The diagnosis as one page, without scripts or anything to load."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["code"] = _code
    environment.filters["percent"] = lambda value: Markup(f"{value:.3g}%")
    diagnosis = harmless(diagnosis)
    measured = diagnosis.measurements
    state, remedy = headline(diagnosis)
    return environment.get_template("page.html").render(
        diagnosis=diagnosis,
        measured=measured,
        target=diagnosis.target,
        state=state[:1].upper() + state[1:],
        remedy=remedy,
        parts=_parts(diagnosis),
        anchors={finding.id for part in diagnosis.parts.values() for finding in part.findings},
        worst=worst(measured),
        heat_maps=[heat_map(side, measured) for side in sides(measured)],
        scale=scale(measured),
        chart=chart(measured) if measured.steps else None,
        strip=strip(measured.loop),
        cells=cells,
        largest=_largest,
        beyond=beyond,
        is_gap=lambda shown: isinstance(shown, Gap),
        is_command=is_command,
    )


def _code(text: str) -> Markup:
    """What stands between backquotes as code; a lone one stays."""
    parts = re.split(r"`([^`]+)`", text)
    return Markup("").join(Markup("<code>{}</code>").format(part) if at % 2 else part for at, part in enumerate(parts))


def _parts(diagnosis: Diagnosis) -> list[tuple[Part, Verdict, list[tuple[Finding, str, str]]]]:
    """Name, verdict, and each finding with its fault in a line and an anchor: the first of an id carries it."""
    seen: set[FaultId] = set()
    parts: list[tuple[Part, Verdict, list[tuple[Finding, str, str]]]] = []
    for name, part in diagnosis.parts.items():
        findings = []
        for finding in part.findings:
            findings.append((finding, FAULTS[finding.id].matter, "" if finding.id in seen else f"found-{finding.id}"))
            seen.add(finding.id)
        parts.append((name, part.verdict, findings))
    return parts


def _largest(step: StepError) -> tuple[float | None, ...]:
    """A step's logits, keys and values; a side with something that is not a number has none."""
    sides = (
        None if None in side else max((error or 0.0 for error in side), default=0.0)
        for side in (step.keys, step.values)
    )
    return (step.logits, *sides)
