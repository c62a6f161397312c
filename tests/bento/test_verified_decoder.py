"""The build hook: makes a decoder once, takes it afterwards, refuses a damaged one."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import bentoml
import pytest

import bento_kv
from bento_kv import VerifiedDecoder
from bento_kv.bento.arguments import Arguments
from bento_kv.bento.asked import DECODER_ALIAS, Asked
from bento_kv.bento.build import RefusedDecoder
from bento_kv.bento.store import versions
from bento_kv.contract.manifest import Manifest
from bento_kv.contract.precision import PRECISIONS, QualityLimits
from bento_kv.errors import VerificationError
from bento_kv.export.exporter import export
from tests import decoders
from tests.contract.test_weight_options import VALUES
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
    monkeypatch.setattr("bento_kv.proof.attempts.export", _fail_to_make)
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


def test_a_decoder_is_taken_with_the_precision_and_cache_that_it_has() -> None:
    made = decoders.proven(precision="int8", kv_cache="int8")
    for options in ({}, {"precision": "int8"}, {"kv_cache": "int8"}, {"precision": "int8", "kv_cache": "int8"}):
        taken = VerifiedDecoder(str(made), **options).resolve()
        assert taken.tag.name.endswith("-int8-kv-int8")
        assert Manifest.read(Path(taken.path)).precision == "int8"
        assert VerifiedDecoder(str(taken.tag), **options).to_info().tag == taken.tag
        VerifiedDecoder(str(made), **options).check()
    for place in (str(made), str(taken.tag)):
        with pytest.raises(RefusedDecoder, match="its precision is int8, not fp32; leave that out"):
            VerifiedDecoder(place, precision="fp32").to_info()
        with pytest.raises(RefusedDecoder, match="its KV cache is int8, not fp32; leave that out"):
            VerifiedDecoder(place, kv_cache="fp32").check()


@pytest.mark.parametrize(
    ("options", "named"),
    [({"precision": "auto"}, "precision auto"), *(({name: VALUES[name]}, name) for name in VALUES)],
    ids=str,
)
def test_what_only_an_export_can_do_is_not_asked_of_a_decoder(
    options: dict[str, Any], named: str, tiny_decoder: Path
) -> None:
    stored = bento_kv.save_model("tiny-as-it-is", tiny_decoder)
    for place in (str(tiny_decoder), str(stored.tag)):
        for refused in (VerifiedDecoder(place, **options).to_info, VerifiedDecoder(place, **options).check):
            with pytest.raises(RefusedDecoder, match=f"is a decoder, and {named} is for making one; leave it out"):
                refused()


@pytest.mark.usefixtures("traced_once")
def test_made_again_when_options_of_quantization_are_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(save_model(tmp_path / "options", "llama", seed=5, num_hidden_layers=1))
    text = tmp_path / "text.txt"
    text.write_text("Which bread is baked today? " * 40)
    ways: list[dict[str, Any]] = [
        {},
        {"block_size": 64},
        {"block_size": 32, "symmetric": False},
        {"method": "gptq", "calibration": text},
    ]
    made = [VerifiedDecoder(source, precision="int4", **how).resolve() for how in ways]
    assert len({model.tag.name for model in made}) == len(ways)
    for how, model in zip(ways, made, strict=True):
        recorded = Manifest.read(Path(model.path)).quantization
        assert {name: recorded[name] for name in how} == {
            **how,
            **({"calibration": text.name} if "method" in how else {}),
        }
    assert len({VerifiedDecoder(source, precision="int4", **how).alias for how in ways}) == len(ways)
    text.write_text("Which cake is baked today? " * 40)
    again = VerifiedDecoder(source, precision="int4", **ways[-1]).resolve()
    assert again.tag.name == made[-1].tag.name
    assert again.tag != made[-1].tag
    monkeypatch.setattr("bento_kv.proof.attempts.export", _fail_to_make)
    for how, model in zip(ways[:-1], made, strict=False):
        assert VerifiedDecoder(source, precision="int4", **how).resolve().tag == model.tag
    # The same name from elsewhere is not taken for it: facts decide.
    assert not VerifiedDecoder(source, precision="int4").asked.made(made[1].info.metadata)


def _strict(monkeypatch: pytest.MonkeyPatch, *precisions: str) -> None:
    """Let the quality gate pass nothing in these precisions."""
    nothing = QualityLimits(kl=-1.0, top1=1.0, perplexity=10.0)
    for name in precisions:
        monkeypatch.setitem(PRECISIONS, name, replace(PRECISIONS[name], quality=nothing))  # type: ignore[arg-type, index, call-overload]


@pytest.mark.usefixtures("traced_once")
def test_a_gate_that_fails_says_what_mends_it_in_the_words_of_who_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(save_model(tmp_path / "gate", "llama", seed=8, num_hidden_layers=1))
    _strict(monkeypatch, "int4")
    monkeypatch.setattr("sys.argv", ["bentoml", "build", "--arg", f"model={source}", "--arg", "precision=int4"])
    by_command = VerifiedDecoder(source, precision="int4", method="rtn", alias=DECODER_ALIAS)
    with pytest.raises(RefusedDecoder, match="its proof failed: quality-kl-prefill") as command:
        by_command.to_info()
    *_, first = lines = str(command.value).splitlines()
    told = [shlex.split(line.partition(": ")[0])[1] for line in lines if line.startswith("  --arg")]
    assert told[:2] == ["method=gptq", "reduce_range=false"]
    for word in told:
        Arguments.model_validate({"precision": "int4", **dict([word.split("=")])})
    assert first == f"The first of them: bentoml build --arg model={source} --arg precision=int4 --arg method=gptq"

    with pytest.raises(RefusedDecoder) as program:
        VerifiedDecoder(source, precision="int4", method="rtn", symmetric=False).to_info()
    call = str(program.value).rpartition("The first of them: ")[2]
    mended = eval(call)
    assert mended.asked.quantization.given == {"method": "gptq", "symmetric": False}
    assert "method=" in str(program.value)
    assert "--arg" not in str(program.value)


@pytest.mark.usefixtures("traced_once")
def test_a_directory_whose_proof_failed_is_to_be_exported_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(save_model(tmp_path / "again", "llama", seed=8, num_hidden_layers=1))
    _strict(monkeypatch, "int4")
    made = tmp_path / "decoder"
    export(source, made, precision="int4")
    assert not decoders.prove(made, source).passed
    with pytest.raises(RefusedDecoder) as refused:
        VerifiedDecoder(str(made)).to_info()
    assert "  --full-range: all 8 bits" in str(refused.value)
    with pytest.raises(VerificationError) as raised:
        bento_kv.save_model("failed", made)
    assert any("reduce_range=False" in note for note in raised.value.__notes__)


@pytest.mark.usefixtures("traced_once")
def test_auto_takes_the_smallest_that_passes_and_finds_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = str(save_model(tmp_path / "auto", "llama", seed=6, num_hidden_layers=1))
    _strict(monkeypatch, "int4")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    caplog.set_level("INFO", "bentoml.bento_kv")
    chosen = VerifiedDecoder(source, precision="auto", block_size=32).resolve()
    manifest = Manifest.read(Path(chosen.path))
    assert manifest.precision == "int8"
    assert [*manifest.tried] == ["int4"]
    assert manifest.tried["int4"][0].startswith("quality-kl-prefill")
    assert chosen.info.metadata["precision"] == "int8"
    assert chosen.info.metadata["asked_precision"] == "auto"
    assert "int4 does not pass: quality-kl-prefill" in caplog.text
    assert not [*tmp_path.glob("bento_kv-*")]
    monkeypatch.setattr("bento_kv.proof.attempts.export", _fail_to_make)
    again = VerifiedDecoder(source, precision="auto", block_size=32)
    assert again.to_info().tag == chosen.tag
    again.check()
    assert versions("bento-kv-auto-int4") == []


@pytest.mark.usefixtures("traced_once")
def test_auto_leaves_nothing_where_none_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(save_model(tmp_path / "none", "llama", seed=7, num_hidden_layers=1))
    _strict(monkeypatch, "int4", "int8", "fp32")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    reference = VerifiedDecoder(source, precision="auto")
    with pytest.raises(
        RefusedDecoder, match=r"no precision has a proof that passes. int4: quality.*; int8: .*; fp32: "
    ):
        reference.to_info()
    assert not [*tmp_path.glob("bento_kv-*")]
    assert versions(reference.tag.name) == []


def test_what_cannot_be_is_named(tmp_path: Path) -> None:
    source = str(decoders.source())
    for options, sentence in (
        ({"precision": "int5"}, "precision 'int5' is not one of: fp32, int8, int4, auto"),
        ({"block_size": 64}, "block_size does nothing with precision fp32; int4 can take it"),
        ({"block_size": 64, "precision": "int8"}, "block_size does nothing with precision int8, which takes"),
        (
            {"precision": "int4", "calibration": Path(__file__), "method": "rtn"},
            "calibration does nothing with method rtn",
        ),
        ({"precision": "int4", "calibration": tmp_path / "no.txt", "method": "gptq"}, r"no\.txt cannot be read"),
        ({"precision": "int4", "calibration": tmp_path, "method": "gptq"}, r"cannot be read as UTF-8 text"),
        ({"kv_cache": "int4"}, "kv_cache 'int4' is not one of: fp32, int8"),
    ):
        for refused in (VerifiedDecoder(source, **options).to_info, VerifiedDecoder(source, **options).check):
            with pytest.raises(RefusedDecoder, match=sentence):
                refused()
    with pytest.raises(RefusedDecoder, match="block_size is 48; it must be 16 or 32"):
        VerifiedDecoder(source, precision="int4", block_size=48)
    with pytest.raises(TypeError, match="blocksize"):
        VerifiedDecoder(source, precision="int4", blocksize=64)


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
    assert Asked(source=source).name() == name
    assert Asked(source=source, max_length=512).name() == f"{name}-512"
    assert Asked(source=source, kv_cache="int8", max_length=512).name() == f"{name}-kv-int8-512"
    assert Asked(source=source, precision="auto").name() == name.replace("fp32", "auto")
    bentoml.Tag.from_str(name)


def test_a_long_name_is_cut() -> None:
    how = {"precision": "int4", "kv_cache": "int8", "max_length": 131072, "block_size": 64}
    reference = VerifiedDecoder("owner/" + "a-long-name-" * 9, **how)  # type: ignore[arg-type]
    assert len(reference.tag.name) == 63
