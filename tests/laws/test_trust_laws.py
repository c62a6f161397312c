"""Laws 6, 7 and 9: what is verified is what is served, nothing else becomes ready, and torch stays outside."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import bento_kv
from bento_kv.errors import BentoKVError
from bento_kv.proof.parity import TorchReference
from bento_kv.proof.proof import prove
from bento_kv.runtime import decoder as decoder_module
from tests.damage import change_graph, flip_weight_byte, set_attention

ROOT = Path(__file__).parents[2]


def test_law_6_what_is_verified_is_what_is_served(
    tiny_source: Path, tiny_decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proof and service open the same file with the same settings, through the same class."""
    opened: list[dict[str, Any]] = []
    real = decoder_module.open_session

    def open_session(model: Path, **options: Any) -> Any:
        session = real(model, **options)
        settings = session.get_session_options()
        opened.append(
            {
                "model": model,
                "providers": session.get_providers(),
                "threads": settings.intra_op_num_threads,
                "optimization": settings.graph_optimization_level,
                "mode": settings.execution_mode,
                "spinning": settings.get_session_config_entry("session.intra_op.allow_spinning"),
            }
        )
        return session

    monkeypatch.setattr(decoder_module, "open_session", open_session)
    assert prove(tiny_decoder, lambda manifest: TorchReference(str(tiny_source), manifest)).passed
    proven = list(opened)
    opened.clear()
    for exact in ("full", "batch"):
        bento_kv.OnnxDecoderRunnable(tiny_decoder, bento_kv.EngineConfig(exact=exact, slots=2)).close()  # type: ignore[arg-type]
    assert all(settings in proven for settings in opened)


def _other_scale(directory: Path) -> None:
    """Files, manifest and record are brought in line by hand; only the numbers give it away."""
    change_graph(directory, lambda model: set_attention(model, 0, "scale", 0.3), manifest={})
    from bento_kv.contract.files import sha256
    from bento_kv.contract.verification import Verification

    record = Verification.read(directory)
    record.model_copy(update={"manifest_sha256": sha256(directory / "manifest.json")}).write(directory)


@pytest.mark.parametrize("damage", [flip_weight_byte, _other_scale])
def test_law_7_what_does_not_match_its_proof_does_not_become_ready(damage: Any, tiny_decoder: Path) -> None:
    damage(tiny_decoder)
    with pytest.raises(BentoKVError):
        bento_kv.OnnxDecoderRunnable(tiny_decoder)


def test_law_9_the_serving_path_never_imports_torch(tiny_decoder: Path) -> None:
    """A request is served in a process in which neither torch nor anything of the export world can be imported."""
    program = f"""
        import asyncio, importlib.abc, sys

        FORBIDDEN = {{"torch", "onnx", "onnxscript", "onnx_ir", "transformers"}}

        class Refuse(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name in FORBIDDEN or name.startswith(("bento_kv.export", "bento_kv.verify", "bento_kv.demo")):
                    raise ModuleNotFoundError(f"refused: {{name}}", name=name)

        sys.meta_path.insert(0, Refuse())

        import bento_kv

        app = bento_kv.openai_app(lambda: None)
        runnable = bento_kv.OnnxDecoderRunnable({str(tiny_decoder)!r}, bento_kv.EngineConfig(slots=2))
        from dataclasses import replace
        text = asyncio.run(runnable.complete("hello", replace(runnable.defaults, max_tokens=5)))
        runnable.close()
        assert not FORBIDDEN & set(sys.modules), sorted(FORBIDDEN & set(sys.modules))
        print("served", len(text) >= 0)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip().endswith("served True")


def test_the_service_and_the_commands_that_serve_import_no_torch() -> None:
    program = (
        "import service, sys; import bento_kv.cli; assert 'torch' not in sys.modules and 'onnx' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
