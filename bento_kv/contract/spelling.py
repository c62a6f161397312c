"""How an option of an export is written: on the command line, as an argument of the service, in Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from bento_kv.contract.remedies import Remedy
from bento_kv.contract.weight_options import OptionValue

# What switches a setting on and off, where it is not its name, without and with `no-`.
_SWITCHES = {"reduce_range": ("--reduce-range", "--full-range"), "symmetric": ("--symmetric", "--asymmetric")}


def switches(name: str) -> tuple[str, str]:
    """The options that set a setting to true and to false."""
    plain = name.replace("_", "-")
    return _SWITCHES.get(name, (f"--{plain}", f"--no-{plain}"))


def as_option(name: str, value: OptionValue) -> str:
    """As `bento-kv export` takes it: `--edge-layers 2`, `--asymmetric`."""
    if isinstance(value, bool):
        return switches(name)[0 if value else 1]
    return f"--{name.replace('_', '-')} {value}"


def as_argument(name: str, value: OptionValue) -> str:
    """As `bentoml build` and `bentoml serve` take it: `--arg edge_layers=2`."""
    return f"--arg {name}={str(value).lower() if isinstance(value, bool) else value}"


def as_keyword(name: str, value: OptionValue | Path) -> str:
    """As `VerifiedDecoder` takes it, and `export` with `QuantizationOptions`: `edge_layers=2`."""
    if isinstance(value, Path):
        return f'{name}=Path("{value}")'
    return f'{name}="{value}"' if isinstance(value, str) else f"{name}={value}"


def advice(remedies: Sequence[Remedy], spell: Callable[[str, OptionValue], str]) -> list[str]:
    """A line for each remedy: the option as it is written, and what it does."""
    return [f"{spell(each.option, each.value)}: {each.reason}" for each in remedies]
