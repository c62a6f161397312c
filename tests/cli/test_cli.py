"""The command line as a user types it: what it prints, where, and the exit code."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from bento_kv.cli import main
from bento_kv.contract.manifest import Manifest
from bento_kv.contract.precision import PRECISIONS, QualityLimits
from bento_kv.contract.verification import Verification
from tests.cli.program import run, run_apart
from tests.damage import flip_weight_byte


def test_from_a_model_to_text(tiny_source: Path, tmp_path: Path) -> None:
    decoder = tmp_path / "decoder"
    exported = run_apart("export", tiny_source, "-o", decoder, "--json")
    assert exported.returncode == 0, exported.stderr
    assert json.loads(exported.stdout)["schema"] == "bento_kv.manifest/1"
    assert exported.stderr == ""

    refused = run_apart("save", decoder, "cli-tiny")
    assert refused.returncode == 2
    assert "`bento-kv verify` writes one" in refused.stderr

    verified = run_apart("verify", decoder, "--html", tmp_path / "proof.html")
    assert verified.returncode == 0, verified.stderr
    assert "Export layer" in verified.stdout
    assert "Proof passed" in verified.stdout
    page = (tmp_path / "proof.html").read_text()
    assert "cached-equals-uncached-full" in page
    assert "http" not in page  # nothing to load
    assert verified.stderr == ""

    saved = run("save", decoder, "cli-tiny", "--json")
    assert json.loads(saved.stdout)["tag"].startswith("cli-tiny:")

    answers = [
        run("generate", target, "Hello", "--max-tokens", "8", "--json", *options)
        for target in (decoder, "cli-tiny")
        for options in ((), ("--temperature", "1", "--seed", "3"), ("--temperature", "1", "--seed", "3"))
    ]
    texts = [json.loads(answer.stdout)["text"] for answer in answers]
    assert texts[0] == texts[3]
    assert texts[1] == texts[2] == texts[4] == texts[5]
    streamed = run_apart("generate", decoder, "Hello", "--max-tokens", "8")
    assert streamed.stdout == texts[0] + "\n"


@pytest.mark.usefixtures("traced_once")
def test_how_int4_is_stored_can_be_chosen(tiny_source: Path, tmp_path: Path) -> None:
    options = ["--block-size", "32", "--asymmetric", "--method", "rtn", "--head-bits", "4", "--edge-layers", "1"]
    options += ["--full-range"]
    exported = run("export", tiny_source, "-o", tmp_path / "decoder", "--precision", "int4", *options)
    assert exported.returncode == 0, exported.stderr
    # Both layers are at an edge, so that the head alone is left to have blocks.
    nodes = onnx.load(tmp_path / "decoder" / "model.onnx", load_external_data=False).graph.node
    (head,) = [node for node in nodes if node.op_type == "MatMulNBits"]
    assert {a.name: a.i for a in head.attribute}.items() >= {"bits": 4, "block_size": 32}.items()
    assert any(name.endswith(".zero_points") for name in head.input)
    assert not Manifest.read(tmp_path / "decoder").reduce_range


def test_a_proof_that_fails_is_exit_1(tiny_source: Path, tiny_decoder: Path) -> None:
    flip_weight_byte(tiny_decoder)
    verified = run("verify", tiny_decoder, "--reference", tiny_source, "--json")
    assert verified.returncode == 1
    assert json.loads(verified.stdout)["passed"] is False
    saved = run("save", tiny_decoder, "cli-broken")
    assert saved.returncode == 1
    assert "was changed" in saved.stderr
    generated = run("generate", tiny_decoder, "Hello")
    assert generated.returncode == 1
    assert generated.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "no-such-model", "-o", "{tmp}/d"], "'no-such-model' is not a model directory"),
        (["export", "nobody/nothing", "-o", "{tmp}/d"], "the hub did not give it"),
        (["export", "demo", "-o", "{tmp}/d", "--precision", "int3"], "int3"),
        (["export", "demo", "-o", "{tmp}/d", "--block-size", "32"], "block_size does nothing with precision fp32"),
        (["export", "demo", "-o", "{tmp}/d", "--precision", "auto", "--kv-cache", "int3"], "int3"),
        (["export", "demo", "-o", "{tmp}/d", "--block-size", "48"], "'48' is not one of"),
        (["export", "demo", "-o", "{tmp}/d", "--max-length", "99999"], "between 32 and the model's 1024"),
        (["export", "demo", "-o", "/proc/nowhere/d"], "cannot be written"),
        (["export", "demo"], "Missing option"),
        (["verify", "{tmp}"], "has no manifest.json"),
        (["verify", "no-such-tag"], "the model store has no no-such-tag"),
        (["verify", "./no/such/dir"], "is not a directory"),
        (["save", "{tmp}/nothing", "name"], "does not exist"),
        (["generate", "{tmp}", "Hi"], "has no manifest.json"),
        (["generate", "demo-that-is-not-there", "Hi"], "the model store has no"),
        (["bench", "{tmp}"], "has no manifest.json"),
        (["bench", "{tmp}", "--batch", "1,x"], "not a list of whole numbers"),
        (["frobnicate"], "No such command"),
    ],
)
def test_what_cannot_be_done_is_exit_2_and_one_sentence(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = run(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_bench_times_prefill_and_decode_by_rows(tiny_decoder: Path) -> None:
    result = run("bench", tiny_decoder, "--batch", "1,3", "--prompt", "20", "--json")
    assert result.returncode == 0
    rows = json.loads(result.stdout)["results"]
    assert [(row["phase"], row["batch"], row["prompt"]) for row in rows] == [
        ("prefill", 1, 20),
        ("decode", 1, 20),
        ("prefill", 3, 20),
        ("decode", 3, 20),
    ]
    for row in rows:
        tokens = row["batch"] * (20 if row["phase"] == "prefill" else 1)
        assert row["tokens_per_second"] == pytest.approx(1000 * tokens / row["step_ms"])
    table = run("bench", tiny_decoder, "--batch", "1", "--prompt", "20").stdout
    assert len(table.splitlines()) == 3


def test_a_process_of_its_own_ends_with_the_code_too(tmp_path: Path) -> None:
    """The tests above run the commands in their own process."""
    refused = run_apart("verify", tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("Error: ")
    assert len(refused.stderr.splitlines()) == 1


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    assert "Traceback" in run_apart("--debug", "verify", tmp_path).stderr


@pytest.mark.slow
@pytest.mark.usefixtures("traced_once")
def test_a_gate_that_fails_names_options_that_export_takes(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = replace(PRECISIONS["int4"], quality=QualityLimits(kl=-1.0, top1=1.0, perplexity=10.0))
    monkeypatch.setitem(PRECISIONS, "int4", strict)  # type: ignore[arg-type]
    words = ["export", str(tiny_source), "-o", str(tmp_path / "decoder"), "--precision", "int4", "--force"]
    assert run(*words, "--block-size", "64").returncode == 0
    verified = run("verify", tmp_path / "decoder", "--reference", tiny_source)
    assert verified.returncode == 1
    told = re.findall("may mend it: (--[^:]*):", verified.stdout)
    assert "--block-size 32" in told
    assert "--asymmetric" in told
    for option in told:
        main.commands["export"].make_context("export", [*words[1:], *option.split()])  # type: ignore[attr-defined]
    saved = run("save", tmp_path / "decoder", "cli-gate")
    assert saved.returncode == 1
    assert "  --block-size 32: " in saved.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("traced_once")
def test_auto_exports_and_proves(tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = replace(PRECISIONS["int4"], quality=QualityLimits(kl=-1.0, top1=1.0, perplexity=10.0))
    monkeypatch.setitem(PRECISIONS, "int4", strict)  # type: ignore[arg-type]
    place = tmp_path / "decoder"
    exported = run("export", tiny_source, "-o", place, "--precision", "auto", "--block-size", "32")
    assert exported.returncode == 0, exported.stderr
    assert "int4 did not pass its proof: quality-kl-prefill" in exported.stdout
    assert "Proven in int8" in exported.stdout
    assert Manifest.read(place).precision == "int8"
    assert Verification.read(place).passed
    assert [*tmp_path.iterdir()] == [place]
    before = sorted((file.name, file.stat().st_mtime_ns) for file in place.iterdir())
    again = run("export", tiny_source, "-o", place, "--precision", "auto")
    assert again.returncode == 2
    assert "exists already" in again.stderr
    for name in ("int8", "fp32"):
        row = replace(PRECISIONS[name], quality=strict.quality)  # type: ignore[index]
        monkeypatch.setitem(PRECISIONS, name, row)  # type: ignore[arg-type]
    failed = run("export", tiny_source, "-o", place, "--precision", "auto", "--force")
    assert failed.returncode == 1
    assert "no precision has a proof that passes. int4: quality-kl-prefill" in failed.stderr
    assert sorted((file.name, file.stat().st_mtime_ns) for file in place.iterdir()) == before
    assert [*tmp_path.iterdir()] == [place]


@pytest.mark.parametrize("command", ["", "export", "verify", "save", "generate", "bench"])
def test_help(command: str) -> None:
    result = run(*([command] if command else []), "--help")
    assert result.returncode == 0
    assert "Usage:" in result.stdout
