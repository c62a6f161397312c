"""The routes under schemathesis: bodies by their fields and against them, none of which may be a 5xx.

    python -m benchmarks.fuzz [--seconds 60] [--seed 0] [--model demo]

The OpenAPI document is made of the models that validate the requests, so a field that is added is tried. Exits with 1 if
an answer was a server error, or if the server no longer answers afterwards.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from benchmarks.loading.server import ROOT, Server, serving
from bento_kv.server import protocol

HOME = ROOT / "build" / "fuzz"
MAX_TOKENS = 8  # of most answers, so that there are many
ROUTES: dict[str, type[protocol.Body]] = {
    "/v1/chat/completions": protocol.ChatRequest,
    "/v1/completions": protocol.CompletionRequest,
    "/v1/tokenize": protocol.TokenizeRequest,
    "/v1/detokenize": protocol.DetokenizeRequest,
    "/generate": protocol.NativeRequest,
}
READ = ("/v1/models", "/v1/verification")

Json = dict[str, Any]

_TEXTS: Json = {"type": "array", "items": {"type": "string"}, "maxItems": 5}
_IDS: Json = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 300}, "minItems": 1}
# What a function validates, which says nothing of shapes; and bounds under which an answer comes soon.
_SHAPES: dict[str, Json] = {
    "prompt": {"anyOf": [{"type": "string"}, _TEXTS, _IDS, {"type": "array", "items": _IDS, "maxItems": 4}]},
    "stop": {"anyOf": [{"type": "string"}, _TEXTS]},
    "logit_bias": {"type": "object", "additionalProperties": {"type": "number", "minimum": -101, "maximum": 101}},
    "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
    "response_format": {"type": "object", "properties": {"type": {"enum": ["text", "json_object"]}}},
    "max_tokens": {"type": "integer", "minimum": 0, "maximum": MAX_TOKENS},
    "max_completion_tokens": {"type": "integer", "minimum": 0, "maximum": MAX_TOKENS},
    # What waits for less is told so by a 503, which is right.
    "max_queue_time": {"type": "number", "minimum": 30},
    "max_time": {"type": "number", "minimum": 30},
}


class _Lenient(GenerateJsonSchema):
    """Anything goes where a function validates."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        return {}


def document(model: str) -> Json:
    """OpenAPI of the routes, for a server of that model."""
    paths: Json = {path: {"get": {"responses": _ANY}} for path in READ}
    definitions: Json = {}
    for path, body in ROUTES.items():
        schema = body.model_json_schema(schema_generator=_Lenient, ref_template="#/components/schemas/{model}")
        definitions |= schema.pop("$defs", {})
        fields = schema["properties"]
        fields |= {name: shape for name, shape in _SHAPES.items() if name in fields and name != "prompt"}
        if body is protocol.CompletionRequest:
            fields["prompt"] = _SHAPES["prompt"]
        fields["model"] = {"enum": [model]}
        content = {"application/json": {"schema": schema}}
        paths[path] = {"post": {"requestBody": {"required": True, "content": content}, "responses": _ANY}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "OpenAI-compatible routes", "version": "1"},
        "paths": paths,
        "components": {"schemas": definitions},
    }


_ANY: Json = {"default": {"description": "an answer, or an error in OpenAI's form"}}


def program() -> str:
    """Where schemathesis is.

    Raises:
        SystemExit: it is not installed.
    """
    beside = Path(sys.executable).with_name("schemathesis")
    found = str(beside) if beside.exists() else shutil.which("schemathesis")
    if found is None:
        raise SystemExit("schemathesis is not installed; `pip install -e '.[bench]'` brings it")
    return found


def fuzz(server: Server, seconds: float, seed: int) -> int:
    """Let schemathesis try the routes.

    Returns:
        Its exit status: 0 where no answer was a server error.
    """
    model, _ = server.model()
    place = HOME / "openapi.json"
    place.write_text(json.dumps(document(model)))
    command = [program(), "run", str(place), "--url", server.url, "--checks", "not_a_server_error"]
    command += ["--phases", "examples,coverage,fuzzing", "--max-time", str(round(seconds)), "--seed", str(seed)]
    command += ["--request-timeout", "60", "--continue-on-failure", "--warnings", "off"]
    return subprocess.run(command, cwd=HOME).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="demo", help="demo, or a directory")
    options = parser.parse_args()
    program()
    with serving(HOME, f"model={options.model}") as server:
        status = fuzz(server, options.seconds, options.seed)
        httpx.get(f"{server.url}/readyz", timeout=60).raise_for_status()
    return 1 if status else 0


if __name__ == "__main__":
    sys.exit(main())
