"""The build hook: makes a decoder once, takes it afterwards, refuses a damaged one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bentoml
import pytest

import bento_kv
from bento_kv import VerifiedDecoder
from bento_kv.bento.build import RefusedDecoder, store_name
from bento_kv.bento.store import versions
from bento_kv.contract.manifest import Manifest
from tests.damage import flip_weight_byte
from tests.zoo import save_model


def _fail_to_make(*_: Any, **__: Any) -> None:
    raise AssertionError("it was to be taken, not made")


@pytest.mark.usefixtures("traced_once")
def test_made_once_then_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_model(tmp_path / "once", "llama")
    first = VerifiedDecoder(str(source)).to_info()
    assert first.tag.name == "bento-kv-once-fp32"
    assert first.alias.startswith("bento_kv.bento-kv-once-fp32.")
    monkeypatch.setattr("bento_kv.export.exporter.export", _fail_to_make)
    assert VerifiedDecoder(str(source)).to_info().tag == first.tag
    assert VerifiedDecoder(str(source)).resolve().tag == first.tag


@pytest.mark.usefixtures("traced_once")
def test_made_again_when_weights_length_or_cache_are_others(tmp_path: Path) -> None:
    source = save_model(tmp_path / "again", "llama", seed=1)
    first = VerifiedDecoder(str(source)).resolve()
    save_model(source, "llama", seed=2)
    second = VerifiedDecoder(str(source)).resolve()
    shorter = VerifiedDecoder(str(source), max_length=64).resolve()
    smaller = VerifiedDecoder(str(source), kv_cache="int8").resolve()
    assert len({str(model.tag) for model in (first, second, shorter, smaller)}) == 4
    assert shorter.info.metadata["max_length"] == 64
    assert Manifest.read(Path(smaller.path)).kv_cache == "int8"
    assert VerifiedDecoder(str(source), kv_cache="int8").resolve().tag == smaller.tag


@pytest.mark.usefixtures("traced_once")
def test_a_damaged_stored_decoder_is_refused_with_the_remedy(tmp_path: Path) -> None:
    source = save_model(tmp_path / "damaged", "llama")
    stored = VerifiedDecoder(str(source)).resolve()
    flip_weight_byte(Path(stored.path))
    reference = VerifiedDecoder(str(source))
    for refused in (reference.to_info, reference.resolve, reference.check):
        with pytest.raises(RefusedDecoder, match=rf"was changed .*bentoml models delete {stored.tag}"):
            refused()


def test_a_proof_that_fails_fails_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter gets one number wrong; nothing is stored."""
    from bento_kv.export import attention

    source = save_model(tmp_path / "wrong", "llama")
    right = attention.packed_attention

    def wrong(*args: Any, scaling: float | None = None, **options: Any) -> Any:
        return right(*args, scaling=0.2, **options)

    monkeypatch.setattr(attention, "packed_attention", wrong)
    with pytest.raises(RefusedDecoder, match="its proof failed: prefill-logits"):
        VerifiedDecoder(str(source)).to_info()
    assert versions("bento-kv-wrong-fp32") == []


def test_decoder_directories_and_tags_are_taken_as_they_are(tiny_decoder: Path) -> None:
    stored = bento_kv.save_model("tiny-by-tag", tiny_decoder)
    assert VerifiedDecoder("tiny-by-tag").resolve().tag == stored.tag
    from_directory = VerifiedDecoder(str(tiny_decoder), name="tiny-by-directory").resolve()
    assert from_directory.tag.name == "tiny-by-directory"
    assert VerifiedDecoder(str(tiny_decoder), name="tiny-by-directory").resolve().tag == from_directory.tag


@pytest.mark.usefixtures("traced_once")
def test_models_of_one_name_are_told_apart(tmp_path: Path) -> None:
    one, other = (
        save_model(tmp_path / owner / "llama", "llama", seed=seed, num_hidden_layers=1)
        for seed, owner in ((1, "a"), (2, "b"))
    )
    references = [VerifiedDecoder(str(source)) for source in (one, other)]
    infos = [reference.to_info() for reference in references]
    assert infos[0].alias != infos[1].alias
    assert infos[0].tag != infos[1].tag
    assert [reference.to_info().tag for reference in references] == [info.tag for info in infos]


def test_what_is_taken_as_it_is_has_to_be_what_was_asked_for(tiny_decoder: Path) -> None:
    with pytest.raises(RefusedDecoder, match="exported for 128 positions, not 256"):
        VerifiedDecoder(str(tiny_decoder), max_length=256).to_info()
    with pytest.raises(RefusedDecoder, match="its precision is fp32, not int4"):
        VerifiedDecoder(str(tiny_decoder), precision="int4").to_info()
    with pytest.raises(RefusedDecoder, match="its KV cache is fp32, not int8"):
        VerifiedDecoder(str(tiny_decoder), kv_cache="int8").to_info()


def test_a_damaged_decoder_directory_is_refused(tiny_decoder: Path) -> None:
    flip_weight_byte(tiny_decoder)
    with pytest.raises(RefusedDecoder, match="was changed"):
        VerifiedDecoder(str(tiny_decoder), name="tiny-flipped").to_info()


def test_a_source_that_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(RefusedDecoder, match="the model store has no nowhere"):
        VerifiedDecoder("nowhere").to_info()
    with pytest.raises(RefusedDecoder, match="not a model directory"):
        VerifiedDecoder(str(tmp_path / "nowhere")).to_info()


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("demo", "bento-kv-demo-fp32"),
        ("Qwen/Qwen2.5-0.5B-Instruct", "bento-kv-qwen2.5-0.5b-instruct-fp32"),
        ("/models/My Model/", "bento-kv-my-model-fp32"),
    ],
)
def test_names_in_the_store(source: str, name: str) -> None:
    assert store_name(source, "fp32", "fp32", None) == name
    assert store_name(source, "fp32", "fp32", 512) == f"{name}-512"
    assert store_name(source, "fp32", "int8", 512) == f"{name}-kv-int8-512"
    bentoml.Tag.from_str(name)
