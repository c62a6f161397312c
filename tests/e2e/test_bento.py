"""`bentoml build`: the bento answers in a fresh venv of its own requirements, and is not built without a proof."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import openai
import pytest
import yaml

from bento_kv import VerifiedDecoder
from bento_kv.bento.store import get
from bento_kv.contract.manifest import Manifest
from tests import decoders
from tests.damage import change_graph, flip_weight_byte, set_attention
from tests.e2e.server import ROOT, serving
from tests.effort import slow_but
from tests.zoo import save_model

BENTOML = Path(sys.executable).parent / "bentoml"


def _bentoml(*arguments: str, home: Path | None = None, program: Path = BENTOML) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"BENTOML_HOME": str(home)} if home else {})}
    command = [str(program), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_a_bento_answers_where_torch_is_not_installed(tmp_path: Path) -> None:
    built = _bentoml("build", "--output", "tag")
    assert built.returncode == 0, built.stdout + built.stderr
    tag = built.stdout.strip().split("__tag__:")[-1]
    bento = Path(_bentoml("get", tag, "--output", "path").stdout.strip())
    record = yaml.safe_load((bento / "bento.yaml").read_text())
    packed = record["services"][0]["models"][0]
    assert packed["tag"].startswith("bento-kv-demo-fp32:")
    assert packed["module"] == "bento_kv"
    assert get(packed["tag"]).info.metadata["source"] == "demo"

    exported = _bentoml("export", tag, str(tmp_path / "demo.bento"))
    assert exported.returncode == 0, exported.stderr
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    requirements = bento / "env" / "python" / "requirements.txt"
    subprocess.run([python, "-m", "pip", "install", "-q", "-r", requirements], check=True, timeout=600)
    installed = subprocess.run([python, "-m", "pip", "list"], check=True, capture_output=True, text=True).stdout
    assert "onnxruntime" in installed
    assert not {"torch", "transformers", "onnx"} & {line.split()[0] for line in installed.splitlines()}

    home = tmp_path / "home"
    home.mkdir()
    program = tmp_path / "venv" / "bin" / "bentoml"
    imported = _bentoml("import", str(tmp_path / "demo.bento"), home=home, program=program)
    assert imported.returncode == 0, imported.stderr
    environment = {"BENTOML_HOME": str(home)}
    with serving(tag, log=tmp_path / "log", bentoml=program, environment=environment, directory=tmp_path) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused")
        reply = client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "What is 17 + 25?"}])
        assert "42" in (reply.choices[0].message.content or "")


def test_a_bento_serves_the_decoder_it_was_built_with(tmp_path: Path) -> None:
    """Not a newer one of the same name; its arguments are those of the build, before them those of the command line."""
    source = save_model(tmp_path / "pinned", "llama", seed=3, num_hidden_layers=1)
    built = _bentoml("build", "--output", "tag", "--arg", f"model={source}", "--arg", "slots=3")
    assert built.returncode == 0, built.stdout + built.stderr
    tag = built.stdout.strip().split("__tag__:")[-1]
    packed = get("bento-kv-pinned-fp32")
    bento = Path(_bentoml("get", tag, "--output", "path").stdout.strip())
    for folder in (bento, Path(packed.path)):
        assert [file for file in folder.rglob("*") if file.is_file() and bytes(tmp_path) in file.read_bytes()] == []
    save_model(source, "llama", seed=4, num_hidden_layers=1)
    VerifiedDecoder(str(source)).resolve()
    assert get("bento-kv-pinned-fp32").tag != packed.tag
    with serving(tag, "--arg", "slots=5", log=tmp_path / "log", directory=tmp_path) as server:
        import httpx

        assert "bento_kv_num_slots 5.0" in httpx.get(f"{server.url}/metrics").text

        proof = httpx.get(f"{server.url}/v1/verification").json()
        assert proof["manifest_sha256"] == packed.info.metadata["manifest_sha256"]
        assert httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"] == "pinned"


@pytest.mark.slow
def test_a_build_takes_options_of_quantization_and_the_bento_serves_what_they_made(tmp_path: Path) -> None:
    source = save_model(tmp_path / "quantized", "llama", seed=9, num_hidden_layers=1)
    options = {"precision": "int4", "block_size": "16", "symmetric": "false", "method": "search", "rotate": "false"}
    arguments = [f"--arg={name}={value}" for name, value in {"model": str(source), **options}.items()]
    built = _bentoml("build", "--output", "tag", *arguments)
    assert built.returncode == 0, built.stdout + built.stderr
    tag = built.stdout.strip().split("__tag__:")[-1]
    bento = Path(_bentoml("get", tag, "--output", "path").stdout.strip())
    packed = yaml.safe_load((bento / "bento.yaml").read_text())["services"][0]["models"][0]["tag"]
    in_force = Manifest.read(Path(get(packed).path)).quantization
    made = {"block_size": 16, "symmetric": False, "method": "search", "rotate": False}
    assert {name: in_force[name] for name in made} == made
    with serving(tag, log=tmp_path / "log", directory=tmp_path) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused")
        assert client.completions.create(model="quantized", prompt="Hello", max_tokens=4).choices[0].finish_reason


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize("damage", slow_but(["weight"], ["weight", "graph"]))
def test_a_damaged_decoder_fails_the_build_and_does_not_become_ready(damage: str, tmp_path: Path) -> None:
    source = shutil.copytree(decoders.source(), tmp_path / f"broken-{damage}")
    VerifiedDecoder(str(source)).resolve()
    arguments = ("--arg", f"model={source}")
    built = _bentoml("build", "--output", "tag", *arguments)
    assert built.returncode == 0, built.stdout + built.stderr
    tag = built.stdout.strip().split("__tag__:")[-1]
    stored = Path(get(f"bento-kv-broken-{damage}-fp32").path)
    if damage == "weight":
        flip_weight_byte(stored)
    else:
        change_graph(stored, lambda model: set_attention(model, 0, "scale", 0.3), manifest=None)

    again = _bentoml("build", *arguments)
    assert again.returncode != 0
    assert "was changed after the export" in again.stdout + again.stderr
    with (
        pytest.raises(RuntimeError, match="was changed after the export"),
        serving(tag, log=tmp_path / "log", directory=tmp_path),
    ):
        pass


def test_a_model_that_cannot_be_exported_fails_the_build(tmp_path: Path) -> None:
    built = _bentoml("build", "--arg", f"model={tmp_path / 'nothing'}")
    assert built.returncode != 0
    assert "is not a model directory" in built.stdout + built.stderr
