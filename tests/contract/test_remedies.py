"""What may mend a decoder: chosen by what is at fault and what is in force, and written as each parser takes it."""

from __future__ import annotations

import shlex
from typing import Any, get_args

import pytest

from bento_kv.bento.arguments import Arguments
from bento_kv.cli import main
from bento_kv.contract.manifest import Manifest
from bento_kv.contract.precision import PRECISIONS
from bento_kv.contract.remedies import Fault, Remedy, applied, merged, remedies_of
from bento_kv.contract.spelling import as_argument, as_keyword, as_option
from bento_kv.contract.weight_options import QuantizationOptions
from tests import decoders

DEFAULT = {
    "bits": 4,
    "block_size": 32,
    "symmetric": True,
    "method": "gptq",
    "head_bits": 8,
    "edge_layers": 0,
    "reduce_range": True,
    "rotate": True,
}
# With it, all that can be better is.
WORST = {"block_size": 128, "method": "rtn", "head_bits": 4, "rotate": False}


def _manifest(precision: str = "int4", kv_cache: str = "fp32", layers: int = 30, **options: Any) -> Manifest:
    known = Manifest.read(decoders.exported())
    quantization = {"int4": DEFAULT, "int8": {"rotate": True, "reduce_range": False}}.get(precision, {})
    changes = {"precision": precision, "kv_cache": kv_cache, "layers": known.layers[:1] * layers}
    return known.model_copy(update={**changes, "quantization": {**quantization, **options}})


def _values(manifest: Manifest, fault: Fault = "decode") -> list[tuple[str, Any]]:
    return [(each.option, each.value) for each in remedies_of(manifest, fault)]


def test_the_cheapest_comes_first_and_what_is_in_force_is_left_out() -> None:
    assert _values(_manifest()) == [
        ("symmetric", False),
        ("block_size", 16),
        ("edge_layers", 2),
        ("precision", "int8"),
        ("precision", "fp32"),
        ("precision", "auto"),
    ]
    assert _values(_manifest(**WORST))[:5] == [
        ("rotate", True),
        ("method", "gptq"),
        ("symmetric", False),
        ("block_size", 32),
        ("head_bits", 8),
    ]
    assert ("edge_layers", 4) in _values(_manifest(edge_layers=2))
    assert "edge_layers" not in dict(_values(_manifest(edge_layers=2, layers=8)))


def test_prompts_of_int4_are_mended_by_what_their_graph_knows() -> None:
    assert _values(_manifest(**WORST), "prefill") == [
        ("rotate", True),
        ("reduce_range", False),
        ("head_bits", 8),
        ("precision", "fp32"),
        ("precision", "auto"),
    ]


def test_int8_and_the_cache() -> None:
    assert _values(_manifest("int8")) == [("precision", "fp32"), ("precision", "auto")]
    assert _values(_manifest("int8", rotate=False), "rounding")[0] == ("rotate", True)
    assert ("kv_cache", "fp32") in _values(_manifest("int8", "int8"))
    assert _values(_manifest("fp32", "int8")) == [("kv_cache", "fp32")]
    assert _values(_manifest("fp32")) == []


def test_another_exporters_decoder_has_none() -> None:
    assert _values(_manifest().model_copy(update={"layout": "growing"})) == []


@pytest.mark.parametrize("precision", [name for name, row in PRECISIONS.items() if row.exported])
@pytest.mark.parametrize("fault", get_args(Fault))
def test_no_remedy_is_in_force_and_each_parser_takes_all(precision: str, fault: Fault) -> None:
    for options in ({}, WORST) if precision == "int4" else ({},):
        manifest = _manifest(precision, "int8", **options)
        for each in remedies_of(manifest, fault):
            in_force = {**manifest.quantization, "precision": precision, "kv_cache": "int8"}
            assert in_force[each.option] != each.value
            _taken(each, precision)


def _taken(remedy: Remedy, precision: str) -> None:
    """By `bento-kv export`, by the service, by Python."""
    options = shlex.split(as_option(remedy.option, remedy.value))
    words = ["demo", "-o", "d", "--precision", precision, *options]
    assert main.commands["export"].make_context("export", words).params[remedy.option] == remedy.value  # type: ignore[attr-defined]
    name, _, word = as_argument(remedy.option, remedy.value).removeprefix("--arg ").partition("=")
    assert getattr(Arguments.model_validate({name: word}), name) == remedy.value
    keywords = eval(f"dict({as_keyword(remedy.option, remedy.value)})")
    assert keywords == {remedy.option: remedy.value}
    asked = applied({"precision": precision}, remedy)
    how = {name: value for name, value in asked.items() if name not in ("precision", "kv_cache")}
    QuantizationOptions(**how).check(asked["precision"])


def test_what_means_nothing_to_another_precision_is_not_asked_for() -> None:
    asked = {"precision": "int4", "rotate": False, "block_size": 64}
    others = {name: Remedy(option="precision", value=name, reason="") for name in ("int8", "fp32", "auto")}
    assert applied(asked, others["int8"]) == {"precision": "int8", "rotate": False}
    assert applied(asked, others["fp32"]) == {"precision": "fp32"}
    assert applied(asked, others["auto"]) == {**asked, "precision": "auto"}


def test_those_of_several_checks_are_merged_in_their_order() -> None:
    manifest = _manifest(**WORST)
    both = merged([*remedies_of(manifest, "decode"), *remedies_of(manifest, "prefill")])
    assert len(both) == len(set(both))
    assert [each.option for each in both][:4] == ["rotate", "method", "reduce_range", "symmetric"]
    assert both[-1].value == "auto"
