"""The model store takes what is proven, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bentoml
import pytest

import bento_kv
from bento_kv.bento.store import locate, versions
from bento_kv.contract.verification import check_proof
from bento_kv.errors import BentoKVError, IntegrityError, ManifestError, SourceError, VerificationError
from tests.damage import change_graph, flip_weight_byte, set_attention


def test_save_get_load(tiny_decoder: Path) -> None:
    saved = bento_kv.save_model("tiny-saved", tiny_decoder)
    stored = bento_kv.get("tiny-saved")
    assert stored.tag == saved.tag
    assert stored.info.module == "bento_kv"
    assert stored.info.metadata["architecture"] == "LlamaForCausalLM"
    assert {path.name for path in Path(stored.path).iterdir()} >= {path.name for path in tiny_decoder.iterdir()}
    assert locate("tiny-saved:latest") == Path(stored.path)
    runnable = bento_kv.load_model("tiny-saved", config=bento_kv.EngineConfig(slots=1))
    runnable.close()


def _unproven(directory: Path) -> None:
    (directory / "verification.json").unlink()


def _failed(directory: Path) -> None:
    path = directory / "verification.json"
    record = json.loads(path.read_text())
    record["passed"] = record["loop"]["passed"] = record["loop"]["checks"][0]["passed"] = False
    path.write_text(json.dumps(record))


def _other_manifest(directory: Path) -> None:
    path = directory / "manifest.json"
    path.write_text(path.read_text().replace('"max_length": 128', '"max_length": 127'))


def _other_scale(directory: Path) -> None:
    """As if the graph had been exported anew after the proof: manifest and files agree, the proof is another's."""
    change_graph(directory, lambda model: set_attention(model, 0, "scale", 0.2), manifest={})


def _missing_file(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()


def _added_template(directory: Path) -> None:
    (directory / "added.jinja").write_text("{{ messages }}")


def _claims(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        path = directory / "verification.json"
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))

    return damage


def _failed_check(record: dict[str, Any]) -> None:
    record["export"]["checks"][3]["passed"] = False


def _no_golden(record: dict[str, Any]) -> None:
    record["golden"] = []


def _loose_golden(record: dict[str, Any]) -> None:
    record["golden_limit"] = 1e9


def _golden_limit_of_another_precision(record: dict[str, Any]) -> None:
    record["golden_limit"] = 0.05


def _cut_manifest(directory: Path) -> None:
    (directory / "manifest.json").write_text('{"schema": "bento_kv.manifest/1"}')


DAMAGES: list[tuple[Callable[[Path], None], type[BentoKVError], str]] = [
    (flip_weight_byte, IntegrityError, r"model\.onnx\.data was changed"),
    (_unproven, ManifestError, r"has no verification\.json; `bento-kv verify` writes one"),
    (_failed, VerificationError, "its proof failed: ragged-rows"),
    (_other_manifest, IntegrityError, "manifest was changed after the proof"),
    (_other_scale, IntegrityError, "manifest was changed after the proof"),
    (_missing_file, IntegrityError, r"tokenizer\.json is missing"),
    (_cut_manifest, ManifestError, "not valid at source"),
    (_added_template, IntegrityError, r"added\.jinja is not in the manifest"),
    (_claims(_failed_check), ManifestError, "it says passed, and its checks do not"),
    (_claims(_no_golden), ManifestError, "it has no golden prompts"),
    (_claims(_loose_golden), ManifestError, "not valid at golden_limit"),
    (_claims(_golden_limit_of_another_precision), VerificationError, "wider than its precision, fp32, allows"),
]


@pytest.mark.parametrize(("damage", "error", "message"), DAMAGES)
def test_what_is_not_proven_is_refused_by_save_and_at_load(
    damage: Callable[[Path], None], error: type[BentoKVError], message: str, tiny_decoder: Path
) -> None:
    check_proof(tiny_decoder)
    damage(tiny_decoder)
    with pytest.raises(error, match=message):
        bento_kv.save_model("tiny-damaged", tiny_decoder)
    with pytest.raises(error, match=message):
        bento_kv.OnnxDecoderRunnable(tiny_decoder)
    assert versions("tiny-damaged") == []


def test_names_and_tags_that_cannot_be(tiny_decoder: Path) -> None:
    with pytest.raises(SourceError, match="does not take 'No Such Name'"):
        bento_kv.save_model("No Such Name", tiny_decoder)
    with pytest.raises(SourceError, match="the model store has no nothing-here"):
        bento_kv.get("nothing-here")
    with pytest.raises(SourceError, match="the model store has no"):
        bento_kv.get("Not a tag!")
    with bentoml.models.create("somebody-elses"):
        pass
    with pytest.raises(SourceError, match="not by bento_kv"):
        bento_kv.get("somebody-elses")
