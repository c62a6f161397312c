"""`--arg` takes what the service and the engine are configured with, under the same names and in the same ranges."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bentoml._internal.utils.args import set_arguments
from bentoml.exceptions import InvalidArgument

from bento_kv.bento.arguments import Arguments, ServiceConfig, argument_settings, read_arguments
from bento_kv.contract.weight_options import NAMES, QuantizationOptions
from bento_kv.engine.config import EngineConfig
from tests.contract.test_weight_options import VALUES


@pytest.fixture(autouse=True)
def _no_arguments_left() -> Iterator[None]:
    yield
    set_arguments({})


def test_every_field_is_an_argument_with_its_words() -> None:
    assert [each.name for each in argument_settings()] == list(Arguments.model_fields)
    assert all(Arguments.model_fields[each.name].description == each.words for each in argument_settings())
    assert {*EngineConfig.__dataclass_fields__, *NAMES} <= {*Arguments.model_fields}


def test_nothing_given_is_the_defaults() -> None:
    set_arguments({})
    assert read_arguments() == (ServiceConfig(), EngineConfig())


def test_words_of_a_command_line_become_values() -> None:
    set_arguments({"slots": "3", "prefix_cache": "false", "max_seconds": "1.5", "exact": "full", "workers": "2"})
    service, engine = read_arguments()
    assert service == ServiceConfig(workers=2)
    assert engine == EngineConfig(slots=3, prefix_cache=False, max_seconds=1.5, exact="full")


def test_words_become_options_of_quantization() -> None:
    set_arguments({"precision": "int4", **{name: str(value).lower() for name, value in VALUES.items()}})
    service, _ = read_arguments()
    assert service.quantization == QuantizationOptions(**VALUES)
    assert service.precision == "int4"


@pytest.mark.parametrize("name", NAMES)
def test_an_option_of_quantization_that_cannot_be_is_named(name: str) -> None:
    for value in WORDS[name]:
        set_arguments({name: value})
        with pytest.raises(InvalidArgument, match=name):
            read_arguments()


WORDS = {
    "bits": ("5", "four", "", "4.5"),
    "block_size": ("48", "-16", "1e2"),
    "symmetric": ("maybe", "2"),
    "method": ("awq", "GPTQ"),
    "calibration": (7,),
    "head_bits": ("6",),
    "edge_layers": ("-1", "1.5", "many"),
    "reduce_range": ("7",),
    "rotate": ("once",),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("slots", 0),
        ("prefill_chunk", 2),
        ("max_seconds", "inf"),
        ("step_timeout", 0),
        ("exact", "half"),
        ("speed", 9),
        ("precision", "int5"),
        ("precision", "fp16"),
        ("kv_cache", "int4"),
    ],
)
def test_what_cannot_be_is_named(name: str, value: object) -> None:
    set_arguments({name: value})
    with pytest.raises(InvalidArgument, match=name):
        read_arguments()
