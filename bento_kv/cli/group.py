"""The group of commands: what becomes of errors, and the options that many commands have.

Exit codes: 0 success; 1 the thing checked is not right; 2 it could not be done.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from bento_kv import __version__
from bento_kv.contract.settings import Setting, named
from bento_kv.contract.spelling import advice, as_option, switches
from bento_kv.disk import write_whole
from bento_kv.engine.config import EngineConfig
from bento_kv.errors import BentoKVError, IntegrityError, VerificationError, first_line
from bento_kv.source import hide_progress_bars

NOT_RIGHT = 1
NOT_DONE = 2

# Packages that only some commands need, by the extra that brings them; `export` brings those of `doctor` too.
_OF_DOCTOR = {"google", "onnx", "onnx_ir"}
_OF_EXPORT = {"onnxscript", "safetensors", "torch", "transformers"}
_DOCTORS = {"doctor", "trace", "repair"}


class _Group(click.Group):
    """Turns our errors into a sentence on stderr and an exit code; `--debug` lets them through."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BentoKVError as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"Error: {error}", err=True)
            if isinstance(error, VerificationError) and error.remedies:
                click.echo("What may mend it, as options of `bento-kv export`, the cheapest first:", err=True)
                click.echo("\n".join(f"  {line}" for line in advice(error.remedies, as_option)), err=True)
            ctx.exit(NOT_RIGHT if isinstance(error, VerificationError | IntegrityError) else NOT_DONE)
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if ctx.params.get("debug") or missing not in _OF_DOCTOR | _OF_EXPORT:
                raise
            extra = "doctor" if missing in _OF_DOCTOR and ctx.invoked_subcommand in _DOCTORS else "export"
            click.echo(f"Error: this needs {missing}: pip install 'bento-kv[{extra}]'", err=True)
            ctx.exit(NOT_DONE)
        except KeyboardInterrupt:
            click.echo("Interrupted", err=True)
            ctx.exit(130)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"Error: {type(error).__name__}: {first_line(error)} (--debug shows where)", err=True)
            ctx.exit(NOT_DONE)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bento-kv")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def main(debug: bool) -> None:  # `debug` is read where errors are caught
    """Export, prove and serve language models from ONNX on BentoML."""
    hide_progress_bars()
    # As an exception, so that what is half done is cleaned up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def as_json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")(function)


def setting_option(record: type, name: str, *, default: Any = None) -> Callable[..., Any]:
    """An option for a setting, with its range and its words."""
    each = named(record, name)
    return click.option(
        "/".join(switches(name)) if each.kind is bool else f"--{name.replace('_', '-')}",
        type=_option_type(each),
        default=default,
        show_default=default is not None,
        help=f"{each.words[0].upper()}{each.words[1:]}.",
    )


def _option_type(each: Setting) -> Any:
    if each.choices:
        return click.Choice(each.choices)
    if each.kind is bool:
        return click.BOOL
    if each.kind is Path:
        return click.Path(exists=True, dir_okay=False, path_type=Path)
    whole = int in (each.type, *get_args(each.type))
    if each.bounds is None:
        return click.INT if whole else click.FLOAT
    ends = each.bounds.given
    least, most = ends.get("gt", ends.get("ge")), ends.get("le")
    if whole:
        return click.IntRange(None if least is None else int(least), None if most is None else int(most))
    return click.FloatRange(least, most, min_open="gt" in ends)


threads_option = setting_option(EngineConfig, "threads")


time_limit_option = click.option(
    "--time-limit",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    show_default=True,
    help="Seconds that one run of the graph may take.",
)


def write_page(path: Path, page: str) -> None:
    """Write what `--html` asks for."""
    try:
        write_whole(path, page.encode("utf-8"))
    except OSError as error:
        raise click.BadParameter(f"{path} cannot be written: {error.strerror}", param_hint="--html") from error


def progress(what: str) -> None:
    """A line on a terminal; nothing in a log or a pipe."""
    if sys.stderr.isatty():
        click.echo(f"  {what}", err=True)
