"""The parts of the docs that follow from the code.

    python -m tools.reference [--check]

Writes what stands between `<!-- generated: NAME -->` and `<!-- end -->` in the pages of `docs/`. With `--check` it writes
nothing, names the pages that are not up to date, and exits with 1 if there are any.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

import bento_kv
from bento_kv import errors
from bento_kv.bento.arguments import argument_settings
from bento_kv.cli import main as cli
from bento_kv.contract.precision import PRECISIONS, PrecisionTraits
from bento_kv.contract.remedies import table as remedy_rows
from bento_kv.contract.settings import Setting, settings
from bento_kv.contract.weight_options import QuantizationOptions, options_of
from bento_kv.doctor import faults
from bento_kv.engine.config import EngineConfig
from bento_kv.engine.request import SamplingParams
from bento_kv.export.forms import FORMS, Form
from bento_kv.server import metric_table, protocol

DOCS = Path(__file__).parents[1] / "docs"
WIDTH = 100  # of prose
_PART = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.reference", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is not up to date")
    options = parser.parse_args()
    stale = [page for page in sorted(DOCS.rglob("*.md")) if (text := page.read_text("utf-8")) != written(text)]
    for page in stale:
        if options.check:
            print(f"{page} is not what the code says; run `python -m tools.reference`", file=sys.stderr)
        else:
            page.write_text(written(page.read_text("utf-8")), "utf-8")
            print(page)
    return 1 if options.check and stale else 0


def written(page: str) -> str:
    """The page with its generated parts made anew."""
    return _PART.sub(lambda found: f"{found[1]}\n{PARTS[found[2]]()}\n\n{found[3]}", page)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(value: object) -> str:
    return f"`{value}`"


def sentence(text: str) -> str:
    """With a capital and a full stop, whatever the words had."""
    text = " ".join(text.split()).rstrip(".")
    return f"{text[:1].upper()}{text[1:]}." if text else ""


# -- the command line -------------------------------------------------------------------------------------------------


def commands() -> str:
    return "\n\n".join(_command(name, command) for name, command in sorted(cli.commands.items()))


def _command(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=f"bento-kv {name}")
    usage = command.get_usage(context).removeprefix("Usage: ")
    rows = [row for each in command.params if (row := _option(each, context))]
    parts = [f"## bento-kv {name}", f"```text\n{' '.join(usage.split())}\n```", _paragraphs(command.help or "")]
    return "\n\n".join([*parts, table(["Option", "What it does"], rows)] if rows else parts)


def _paragraphs(text: str) -> str:
    return "\n\n".join(_filled(" ".join(each.split())) for each in inspect.cleandoc(text).split("\n\n"))


def _filled(text: str) -> str:
    """One paragraph or item of a list, in lines."""
    indent = "  " if text.startswith("- ") else ""
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _option(parameter: click.Parameter, context: click.Context) -> tuple[str, str] | None:
    """Its names and what may follow them, and what it does; arguments are in the usage line already."""
    if not isinstance(parameter, click.Option) or parameter.hidden:
        return None
    names = " / ".join(", ".join(each) for each in (parameter.opts, parameter.secondary_opts) if each)
    takes_value = not (parameter.is_flag or parameter.count)
    metavar = parameter.type.name.split()[0].upper() if takes_value else ""
    sentences = [parameter.help or "", *_values(parameter)]
    extra = parameter.get_help_extra(context)
    if "default" in extra:
        sentences.append(f"The default is {code(extra['default'])}.")
    if "required" in extra:
        sentences.append("Required.")
    return code(f"{names} {metavar}".strip()), " ".join(each for each in sentences if each)


def _values(option: click.Option) -> Iterator[str]:
    """What it takes, where that is a list or a range."""
    kind = option.type
    if isinstance(kind, click.Choice):
        yield f"One of {', '.join(map(code, kind.choices))}."
    elif isinstance(kind, click.IntRange | click.FloatRange) and not option.count:
        ends = [
            (kind.min, "above" if kind.min_open else "at least"),
            (kind.max, "below" if kind.max_open else "at most"),
        ]
        yield sentence(" and ".join(f"{words} {end}" for end, words in ends if end is not None))


# -- fields -----------------------------------------------------------------------------------------------------------


def arguments() -> str:
    return _settings("Argument", argument_settings())


def config() -> str:
    return _settings("Field", settings(EngineConfig))


def sampling() -> str:
    return _settings("Field", settings(SamplingParams))


def _settings(noun: str, rows: Iterable[Setting]) -> str:
    return table(
        [noun, "Default", "Must be", "What it is"],
        ((code(each.name), _value(each.default), each.expected, sentence(each.words)) for each in rows),
    )


def _value(value: object) -> str:
    if isinstance(value, bool):
        return code(str(value).lower())  # as JSON and `--arg` have it
    return "" if value is None else "empty" if value in ((), frozenset(), {}) else code(value)


# -- HTTP -------------------------------------------------------------------------------------------------------------

_ROUTES = {"chat": protocol.ChatRequest, "completions": protocol.CompletionRequest}


def fields() -> str:
    """Every supported field, where it is taken, and what it must be."""
    names = dict.fromkeys(name for body in _ROUTES.values() for name in body.model_fields)
    return table(
        ["Field", "Route", "Must be"],
        (
            (code(name), _routes(name), _expected(name))
            for name in names
            if name not in protocol.ACCEPTED_WITHOUT_EFFECT
        ),
    )


def _routes(name: str) -> str:
    having = [route for route, body in _ROUTES.items() if name in body.model_fields]
    return "both" if len(having) == len(_ROUTES) else having[0]


def _expected(name: str) -> str:
    """As an error says it; of both routes where they differ."""
    found = [body.model_fields[name].description for body in _ROUTES.values() if name in body.model_fields]
    return ", or ".join(dict.fromkeys(each or _SHAPES[name] for each in found))


# Fields whose parsers explain themselves in errors of many kinds.
_SHAPES = {
    "stop": "a string, or a list of strings",
    "logit_bias": "an object of token ids and biases",
    "response_format": "an object of type 'text'",
    "prompt": "a string, a list of strings, a list of token ids, or a list of such lists",
}


def accepted() -> str:
    return ", ".join(map(code, sorted(protocol.ACCEPTED_WITHOUT_EFFECT))) + "."


def refused() -> str:
    places = {
        "chat": protocol.REFUSED_IN_CHAT,
        "completions": protocol.REFUSED_IN_COMPLETIONS,
        "a message": protocol.REFUSED_IN_MESSAGES,
    }
    return table(["In", "Fields"], ((where, ", ".join(map(code, sorted(names)))) for where, names in places.items()))


def http_errors() -> str:
    own = [each for name in errors.__all__ if (each := getattr(errors, name)).http_status != 500]
    rows = [(str(e.http_status), code(e.error_type), _code(e), _summary(e)) for e in own]
    return table(
        ["Status", "Type", "Code", "When"],
        (
            (status, kind, code(name) if name else "", when)
            for status, kind, name, when in sorted(rows, key=lambda row: row[0])
        ),
    )


def _code(error: type[errors.BentoKVError]) -> str | None:
    """The class's own, or what an instance has unless told otherwise."""
    given = inspect.signature(error.__init__).parameters.get("code")
    return given.default if given is not None and given.default else error.code


# -- Python -----------------------------------------------------------------------------------------------------------


def surface() -> str:
    names = [name for name in bento_kv.__all__ if name != "__version__"]
    return table(["Name", "What it is"], ((code(name), _summary(_public(name))) for name in names))


def _public(name: str) -> Any:
    return getattr(bento_kv, name, None) or importlib.import_module(f"bento_kv.{name}")


def _summary(thing: object) -> str:
    """The first sentence of a docstring."""
    text = inspect.getdoc(getattr(thing, "inner", thing)) or ""  # a BentoML service is an object around its class
    return sentence(re.split(r"(?<=\w)[.:](?:\s|$)", " ".join(text.split("\n\n")[0].split()))[0])


def tree() -> str:
    lines = inspect.cleandoc(errors.__doc__ or "").splitlines()
    drawn = [line[4:] for line in lines if line.startswith("    ")]
    return "\n".join(["```text", *drawn, "```"])


# -- tables -----------------------------------------------------------------------------------------------------------


def metrics() -> str:
    return table(
        ["Metric", "Kind", "What it is", "Workers"], ((*_metric(each), _workers(each)) for each in metric_table.METRICS)
    )


def _metric(metric: metric_table.Metric) -> tuple[str, str, str]:
    labels = ", ".join(name for name, _ in metric.labels)
    values = [f"{code(name)} is {' or '.join(map(code, values))}." for name, values in metric.labels if values]
    name = f"{metric_table.PREFIX}{metric.name}{f'{{{labels}}}' if labels else ''}"
    return code(name), metric.kind, " ".join([metric.help, *values])


def _workers(metric: metric_table.Metric) -> str:
    return "max" if metric.mode == "livemax" else "sum"


def export_faults() -> str:
    return _faults(faults.EXPORT_FAULTS)


def loop_faults() -> str:
    return _faults(faults.LOOP_FAULTS)


def _faults(rows: Iterable[faults.Fault]) -> str:
    return "\n\n".join(
        "\n".join(
            [
                f"### {each.id}",
                "",
                _filled(sentence(each.matter)),
                "",
                _filled(f"- **Cause**: {each.cause}."),
                _filled(f"- **Remedy**: {each.remedy}."),
            ]
        )
        for each in rows
    )


def checklist() -> str:
    found = [(item, [each for each in faults.FAULTS.values() if item in each.items]) for item in faults.CHECKLIST]
    return table(
        ["Item", "What has to be right", "Not done while there is"],
        ((code(item), faults.CHECKLIST[item], _ids(against)) for item, against in found),
    )


def _ids(rows: Sequence[faults.Fault]) -> str:
    every = len(rows) == len(faults.EXPORT_FAULTS) and all(each.part == "export" for each in rows)
    return "any fault of the export" if every else ", ".join(code(each.id) for each in rows)


# Rows of the table of limits, as `docs/reference/precisions.md` explains them.
_LIMITS: Mapping[str, Callable[[PrecisionTraits], float | None]] = {
    "rounding": lambda row: row.rounding,
    "golden": lambda row: row.golden,
    "quality-kl": lambda row: row.quality.kl,
    "quality-top1": lambda row: row.quality.top1,
    "quality-perplexity": lambda row: row.quality.perplexity,
    "weight error": lambda row: row.weight_error,
    "doctor, against itself": lambda row: row.self_consistency,
    "doctor, against torch": lambda row: row.against_reference,
}


def limits() -> str:
    return table(
        ["Limit", *map(code, PRECISIONS)],
        (
            [name, *("" if value is None else f"{value:g}" for value in map(limit, PRECISIONS.values()))]
            for name, limit in _LIMITS.items()
        ),
    )


def options() -> str:
    """Of quantization: what each does, and what a precision has unless asked otherwise."""
    rows = [(each, [_default(form, each.name, precision) for precision, form in FORMS.items()]) for each in _OPTIONS]
    return table(
        ["Option", "Must be", "What it is", *(f"Default of {code(name)}" for name in FORMS)],
        ((code(each.name), each.expected, sentence(each.words), *defaults) for each, defaults in rows),
    )


_OPTIONS = settings(QuantizationOptions)


def _default(form: Form, name: str, precision: str) -> str:
    return _value(getattr(form.default, name, None)) if name in options_of(precision) else ""


def remedies() -> str:
    rows = ((code(option), code(precision), where, sentence(why)) for option, precision, where, why in remedy_rows())
    return table(["Option", "Of", "Mends", "What it does"], rows)


PARTS: Mapping[str, Callable[[], str]] = {
    "commands": commands,
    "arguments": arguments,
    "config": config,
    "sampling": sampling,
    "fields": fields,
    "accepted": accepted,
    "refused": refused,
    "errors": http_errors,
    "surface": surface,
    "tree": tree,
    "metrics": metrics,
    "export faults": export_faults,
    "loop faults": loop_faults,
    "checklist": checklist,
    "limits": limits,
    "options": options,
    "remedies": remedies,
}


def parts_of(page: str) -> Iterator[str]:
    """Names of the generated parts of a page, in order."""
    return (found[2] for found in _PART.finditer(page))


if __name__ == "__main__":
    sys.exit(main())
