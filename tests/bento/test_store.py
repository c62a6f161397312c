"""The model store takes what is proven, and nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bentoml
import pytest

import bento_kv
from bento_kv.bento.store import _beside_store, _store, clean_store, locate, versions
from bento_kv.contract.verification import check_proof
from bento_kv.disk import is_part
from bento_kv.errors import BentoKVError, IntegrityError, ManifestError, SourceError, VerificationError
from tests.damage import change_graph, flip_weight_byte, set_attention


def test_save_get_load(tiny_decoder: Path) -> None:
    saved = bento_kv.save_model("tiny-saved", tiny_decoder)
    stored = bento_kv.get("tiny-saved")
    assert stored.tag == saved.tag
    assert stored.info.module == "bento_kv"
    assert stored.info.metadata["architecture"] == "LlamaForCausalLM"
    listed = {*check_proof(tiny_decoder)[0].files, "manifest.json", "verification.json", "model.yaml"}
    assert {path.name for path in Path(stored.path).iterdir()} == listed
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


def _names_in_the_store(name: str) -> list[str]:
    return sorted(path.name for path in (_store() / name).iterdir())


def test_only_what_the_manifest_lists_is_stored(tiny_decoder: Path, tmp_path: Path) -> None:
    (tiny_decoder / ".origin").write_text("/home/somebody/model\n")
    stored = Path(bento_kv.save_model("tiny-listed", tiny_decoder).path)
    assert not (stored / ".origin").exists()
    secret = tmp_path / "keys"
    secret.mkdir()
    (secret / "id_rsa").write_text("secret")
    (tiny_decoder / "keys").symlink_to(secret)
    with pytest.raises(IntegrityError, match="keys"):
        bento_kv.save_model("tiny-listed", tiny_decoder)
    assert not list(_store().rglob("id_rsa"))


def test_a_save_that_fails_leaves_nothing(tiny_decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bento_kv.bento.store.copy_files", fails)
    with pytest.raises(SourceError, match="is its disk full"):
        bento_kv.save_model("tiny-nospace", tiny_decoder)
    assert not (_store() / "tiny-nospace").exists()
    assert not [path for path in _store().parent.iterdir() if is_part(path.name)]


def test_a_tag_is_given_once(tiny_decoder: Path) -> None:
    bento_kv.save_model("tiny-tagged:one", tiny_decoder)
    with pytest.raises(SourceError, match="exists already"):
        bento_kv.save_model("tiny-tagged:one", tiny_decoder)
    assert bento_kv.get("tiny-tagged").tag.version == "one"


def _empty(version: Path) -> None:
    version.mkdir()


def _without_model_yaml(version: Path) -> None:
    version.mkdir()
    (version / "model.onnx").write_bytes(b"half")


def _with_half_a_model_yaml(version: Path) -> None:
    version.mkdir()
    (version / "model.yaml").write_text("name: ")


def _with_no_model_yaml_in_it(version: Path) -> None:
    version.mkdir()
    (version / "model.yaml").touch()


@pytest.mark.parametrize("half", [_empty, _without_model_yaml, _with_half_a_model_yaml, _with_no_model_yaml_in_it])
def test_versions_that_are_not_whole_are_passed_by(half: Callable[[Path], None], tiny_decoder: Path) -> None:
    """As a killed `bentoml models import` leaves them, or one that another process is at."""
    name = f"tiny-half{half.__name__.replace('_', '-')}"
    whole = bento_kv.save_model(name, tiny_decoder)
    half(_store() / name / "unfinished")
    (_store() / name / "latest").write_text("unfinished")
    assert [model.tag for model in versions(name)] == [whole.tag]
    assert bento_kv.get(name).tag == whole.tag
    assert bento_kv.get(f"{name}:latest").tag == whole.tag
    clean_store(name)
    assert "unfinished" in _names_in_the_store(name)  # another process may be at it


def test_a_latest_that_names_nothing(tiny_decoder: Path) -> None:
    whole = bento_kv.save_model("tiny-latest", tiny_decoder)
    for content in ("", "gone", "../.."):
        (_store() / "tiny-latest" / "latest").write_text(content)
        assert bento_kv.get("tiny-latest").tag == whole.tag


def test_versions_that_nobody_finishes_are_removed(tiny_decoder: Path) -> None:
    whole = bento_kv.save_model("tiny-abandoned", tiny_decoder)
    left = _store() / "tiny-abandoned" / "unfinished"
    _without_model_yaml(left)
    for path in (left / "model.onnx", left):
        os.utime(path, (0, 0))
    clean_store("tiny-abandoned")
    assert _names_in_the_store("tiny-abandoned") == sorted(["latest", str(whole.tag.version)])


def test_what_a_killed_save_left_beside_the_store_goes_with_the_next(tiny_decoder: Path) -> None:
    left = _store().parent / f".models.{'0' * 16}.bento_kv-part"
    left.mkdir()
    (left / "model.onnx").write_bytes(b"half")
    bento_kv.save_model("tiny-after", tiny_decoder)
    assert not left.exists()


def test_two_processes_that_save_the_same_each_have_a_whole_version(tiny_decoder: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        saved = list(pool.map(lambda _: bento_kv.save_model("tiny-at-once", tiny_decoder), range(4)))
    assert len({str(model.tag) for model in saved}) == 4
    assert len(versions("tiny-at-once")) == 4
    for model in saved:
        check_proof(Path(model.path))


def test_a_store_that_is_a_file_system_of_its_own(tiny_decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def another_device(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("bento_kv.bento.store.put", another_device)
    saved = bento_kv.save_model("tiny-mounted:one", tiny_decoder)
    check_proof(Path(saved.path))
    assert (Path(saved.path) / "model.yaml").is_file()
    with pytest.raises(SourceError, match="exists already"):
        bento_kv.save_model("tiny-mounted:one", tiny_decoder)
    check_proof(Path(bento_kv.get("tiny-mounted").path))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copytree", full)
    with pytest.raises(SourceError, match="No space"):
        bento_kv.save_model("tiny-mounted:two", tiny_decoder)
    assert _names_in_the_store("tiny-mounted") == ["latest", "one"]


def test_a_store_that_is_a_link_is_staged_where_it_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, link = tmp_path / "disk" / "models", tmp_path / "models"
    real.mkdir(parents=True)
    link.symlink_to(real)
    monkeypatch.setattr("bento_kv.bento.store._store", lambda: link)
    assert _beside_store() == real
    left = [path.parent / f".models.{'0' * 16}.bento_kv-part" for path in (real, link)]
    for path in left:
        path.mkdir()
    clean_store("any")
    assert not any(path.exists() for path in left)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert _beside_store() == link
