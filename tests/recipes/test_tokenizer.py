"""The tokenizer: every text survives it, and the training encoder agrees with it."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from bento_kv import demo
from recipes.demo import recipe, text, tokenizer


@pytest.fixture(scope="module")
def shipped() -> Any:
    return AutoTokenizer.from_pretrained(demo.path())


@pytest.mark.parametrize(
    "said",
    [
        "",
        " ",
        "plain",
        " lead and trail ",
        "tab\tline\r\nend\n\n",
        "naïve façade",
        "日本語",
        "👩‍👩‍👧 🏳️‍🌈",
        "e\u0301 é",
        "\x00\x7f\x85\u2028",
        "a  b   c",
    ],
)
def test_text_round_trips(shipped: Any, said: str) -> None:
    ids = shipped(said).input_ids
    assert ids == list(said.encode())
    assert shipped.decode(ids) == said


def test_random_unicode_round_trips(shipped: Any) -> None:
    rng = random.Random(0)
    for _ in range(200):
        points = [
            rng.choice((rng.randrange(0x80), rng.randrange(0xD800), rng.randrange(0xE000, 0x110000))) for _ in range(20)
        ]
        said = "".join(map(chr, points))
        assert shipped.decode(shipped(said).input_ids) == said


def test_every_id_decodes(shipped: Any) -> None:
    assert len(shipped) == tokenizer.VOCAB_SIZE
    assert [shipped.convert_ids_to_tokens(id_) for id_ in range(256, 264)] == list(tokenizer.SPECIAL_TOKENS)
    assert (shipped.eos_token, shipped.eos_token_id) == ("<|end|>", tokenizer.END_ID)
    assert (shipped.pad_token, shipped.pad_token_id) == ("<|pad|>", tokenizer.PAD_ID)


def test_chat_template_renders_every_role(shipped: Any) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": " 1 + 1? "},
    ]
    rendered = shipped.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert rendered == (
        "<|system|>Be brief.<|end|><|user|>Hello<|end|><|assistant|>Hi.<|end|><|user|> 1 + 1? <|end|><|assistant|>"
    )
    assert shipped.apply_chat_template(chat[:2], tokenize=False) == "<|system|>Be brief.<|end|><|user|>Hello<|end|>"


def test_chat_template_refuses_other_roles(shipped: Any) -> None:
    with pytest.raises(Exception, match="Unknown role: tool"):
        shipped.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_training_encodes_as_the_chat_template_does(shipped: Any) -> None:
    for conversation in text.training_batch(7, 0, recipe.Phase(1, 400, 0.0, 0.0, crowded=0.3)):
        rendered = shipped.apply_chat_template(conversation.messages(), tokenize=False)
        ids, answered = conversation.encode()
        assert shipped(rendered).input_ids == ids
        answers = "".join(exchange.answer + "<|end|>" for exchange in conversation.exchanges)
        assert shipped.decode([id_ for id_, counts in zip(ids, answered, strict=True) if counts]) == answers


def test_shipped_files_are_what_the_recipe_writes(tmp_path: Path) -> None:
    tokenizer.write(tmp_path)
    for file in tmp_path.iterdir():
        assert file.read_text() == (demo.path() / file.name).read_text()


def test_loads_without_torch() -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from transformers import AutoTokenizer\n"
        "from bento_kv import demo\n"
        "from recipes.demo import cases, text\n"
        "print(AutoTokenizer.from_pretrained(demo.path())('hi').input_ids)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[104, 105]"
