"""A manifest names plain files below its directory, and nothing is followed out of it."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from bento_kv.contract.files import check_hashes, copy_files, hash_files, name_faults, open_plain, sha256
from bento_kv.contract.manifest import Manifest
from bento_kv.contract.verification import check_proof
from bento_kv.errors import IntegrityError, ManifestError

NO_NAMES = [
    "../outside",
    "/etc/passwd",
    "folder/../../outside",
    "folder/./file",
    "folder//file",
    ".",
    "..",
    "",
    "folder/",
    "~\\file",
    "..\\outside",
    "file\0",
    "file\n",
    "\u202efile",
    "manifest.json",
    "verification.json",
]


@pytest.mark.parametrize("name", NO_NAMES)
def test_names_of_no_file_below_the_directory(name: str, tiny_decoder: Path) -> None:
    assert list(name_faults([name]))
    path = tiny_decoder / "manifest.json"
    document = json.loads(path.read_text())
    document["files"][name] = "0" * 64
    path.write_text(json.dumps(document))
    with pytest.raises(ManifestError, match="not valid at files"):
        Manifest.read(tiny_decoder)


def test_graphs_are_among_the_files_and_names_are_there_once() -> None:
    assert not list(name_faults(["model.onnx", "onnx/model.onnx", "Ünï.json", "a b.txt", ".hidden"]))
    assert list(name_faults(["model.onnx", "MODEL.onnx"]))
    assert list(name_faults(["onnx/model.onnx", "ONNX/model.onnx"]))


@pytest.mark.parametrize("name", ["../outside.onnx", "/outside.onnx"])
def test_a_graph_outside_is_refused(name: str, tiny_decoder: Path) -> None:
    path = tiny_decoder / "manifest.json"
    document = json.loads(path.read_text())
    document["graphs"] = [name]
    path.write_text(json.dumps(document))
    with pytest.raises(ManifestError, match="does not name"):
        Manifest.read(tiny_decoder)


def _linked_file(decoder: Path, outside: Path) -> str:
    name = "tokenizer.json"
    shutil.move(decoder / name, outside / name)
    (decoder / name).symlink_to(outside / name)
    return name


def _linked_folder(decoder: Path, outside: Path) -> str:
    (outside / "id_rsa").write_text("secret")
    (decoder / "keys").symlink_to(outside)
    return "keys"


def _link_within(decoder: Path, outside: Path) -> str:
    (decoder / "copy").symlink_to("tokenizer.json")
    return "copy"


def _dangling(decoder: Path, outside: Path) -> str:
    (decoder / "gone").symlink_to(outside / "nothing")
    return "gone"


def _pipe(decoder: Path, outside: Path) -> str:
    (decoder / "tokenizer.json").unlink()
    os.mkfifo(decoder / "tokenizer.json")
    return "tokenizer.json"


def _socket(decoder: Path, outside: Path) -> str:
    (decoder / "tokenizer.json").unlink()
    here = os.open(decoder, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as made:  # a path of any length, as the kernel sees it
        made.bind(f"/proc/self/fd/{here}/tokenizer.json")
    os.close(here)
    return "tokenizer.json"


def _folder_for_file(decoder: Path, outside: Path) -> str:
    (decoder / "tokenizer.json").unlink()
    (decoder / "tokenizer.json").mkdir()
    return "tokenizer.json"


def _linked_manifest(decoder: Path, outside: Path) -> str:
    shutil.move(decoder / "manifest.json", outside / "manifest.json")
    (decoder / "manifest.json").symlink_to(outside / "manifest.json")
    return "manifest.json"


def _piped_record(decoder: Path, outside: Path) -> str:
    (decoder / "verification.json").unlink()
    os.mkfifo(decoder / "verification.json")
    return "verification.json"


NOT_PLAIN = [
    _linked_file,
    _linked_folder,
    _link_within,
    _dangling,
    _pipe,
    _socket,
    _folder_for_file,
    _linked_manifest,
    _piped_record,
]


@pytest.mark.parametrize("damage", NOT_PLAIN)
def test_what_is_no_plain_file_is_refused_and_never_waited_for(
    damage: Callable[[Path, Path], str], tiny_decoder: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    name = damage(tiny_decoder, outside)
    with pytest.raises(IntegrityError, match=name):
        check_proof(tiny_decoder)


def test_a_file_behind_a_linked_folder_is_not_hashed_copied_or_read(tmp_path: Path) -> None:
    decoder, outside, target = tmp_path / "decoder", tmp_path / "outside", tmp_path / "target"
    for folder in (decoder, outside, target):
        folder.mkdir()
    (outside / "id_rsa").write_text("secret")
    (decoder / "keys").symlink_to(outside)
    listed = {"keys/id_rsa": sha256(outside / "id_rsa")}
    for use in (
        lambda: open_plain(decoder, "keys/id_rsa"),
        lambda: hash_files(decoder),
        lambda: check_hashes(decoder, listed),
        lambda: copy_files(decoder, listed, target),
    ):
        with pytest.raises(IntegrityError):
            use()
    assert not list(target.rglob("id_rsa"))


def test_the_directory_itself_may_be_a_link(tiny_decoder: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(tiny_decoder)
    check_proof(tmp_path / "latest")


def test_what_a_killed_process_left_is_no_fault(tiny_decoder: Path) -> None:
    (tiny_decoder / f".manifest.json.{'0' * 16}.bento_kv-part").write_text("{")
    check_proof(tiny_decoder)


def test_a_file_that_changes_between_check_and_copy_is_not_taken(tiny_decoder: Path, tmp_path: Path) -> None:
    manifest, _ = check_proof(tiny_decoder)
    (tiny_decoder / "tokenizer.json").write_text("{}")
    (tmp_path / "target").mkdir()
    with pytest.raises(IntegrityError, match="was changed"):
        copy_files(tiny_decoder, manifest.files, tmp_path / "target")
