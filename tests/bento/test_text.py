"""The served tokenizer and chat templates against transformers'."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from jinja2 import TemplateError
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bento_kv.errors import ManifestError, RequestError
from bento_kv.proof.text import CHATS, PROBES
from bento_kv.text.chat_template import ChatTemplate
from bento_kv.text.tokenizer import Tokenizer
from tests.tokenizers import FORMS
from tests.zoo import byte_tokenizer

TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim }}"
        "{{ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "blocks": (
        "{%- if messages[0].role == 'system' %}\n    {{- bos_token + messages[0].content }}\n"
        "    {%- set rest = messages[1:] %}\n{%- else %}\n    {%- set rest = messages %}\n{%- endif %}\n"
        "{% for m in rest %}\n  {% if m.role == 'assistant' %}\n    {% generation %}{{ m.content }}{% endgeneration %}\n"
        "  {% else %}\n[{{ m.role }}] {{ m.content }}{{ eos_token }}\n  {% endif %}\n{% endfor %}\n"
    ),
    "json": "{% for m in messages %}{{ m | tojson }}{{ m.content | tojson(indent=2) }}{% endfor %}{{ tools is none }}",
    "loops": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ loop.index }}{{ m.content }}{% endfor %}",
    "refuses": "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}{{ messages | length }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_as_in_transformers(name: str, tmp_path: Path) -> None:
    theirs = byte_tokenizer()
    theirs.chat_template = TEMPLATES[name]
    theirs.save_pretrained(tmp_path)
    ours = Tokenizer(tmp_path)
    for chat in CHATS:
        try:
            expected = theirs.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            with pytest.raises(RequestError, match=str(error)) as caught:
                ours.render_chat(chat)
            assert caught.value.param == "messages"
        else:
            assert ours.render_chat(chat) == expected


def test_a_template_knows_the_day() -> None:
    template = ChatTemplate("{{ strftime_now('%Y') }}", {})
    assert template.render([]) == str(datetime.now().year)


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    ],
)
def test_a_template_is_kept_in_its_sandbox(attack: str) -> None:
    with pytest.raises(RequestError, match=r"unsafe|undefined"):
        ChatTemplate(f"{{% if {attack[2:-2]} %}}reached{{% endif %}}", {}).render([{"role": "user", "content": "x"}])


def test_a_template_that_is_none() -> None:
    with pytest.raises(ManifestError, match="not valid"):
        ChatTemplate("{% for %}", {})


def _metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """In the manner of Llama 2: spaces as U+2581, unknown characters as bytes."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        *"helowrd",
        "\u2581he",
        "llo",
    ]
    rust = RustTokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=[("\u2581", "he")] if "he" in pieces else [],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    rust.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    rust.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=rust, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
def test_tokens_are_transformers_tokens_and_their_bytes_the_text(kind: str, tmp_path: Path) -> None:
    (byte_tokenizer() if kind == "bytes" else _metaspace_tokenizer()).save_pretrained(tmp_path)
    ours, theirs = Tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in PROBES:
        ids = ours.encode(text)
        assert ids == theirs(text)["input_ids"]
        joined = b"".join(ours.token_bytes(token) for token in ids).decode()
        assert joined == text if kind == "bytes" else joined.removeprefix(" ") == text


@pytest.mark.parametrize("form", [form for form in FORMS if form != "word ends"])  # there the space depends on the next
def test_the_bytes_of_tokens_joined_are_the_text_behind_others(form: str, tmp_path: Path) -> None:
    rust = FORMS[form]()
    PreTrainedTokenizerFast(tokenizer_object=rust).save_pretrained(tmp_path)
    ours = Tokenizer(tmp_path)
    for text in ("a is a", "a", "é你", "a.a 's"):
        ids = ours.encode(text)
        joined = b"".join(ours.token_bytes(token) for token in ids).decode()
        anchor = ours.encode("a")
        assert ours.decode([*anchor, *ids], skip_special_tokens=False) == ours.decode(anchor) + joined


def test_special_tokens_have_their_text_as_bytes(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    ours = Tokenizer(tmp_path)
    assert ours.encode("</s>") == [257]
    assert ours.token_bytes(257) == b"</s>"
    assert ours.decode([104, 257]) == ours.decode([104])
    assert ours.token_bytes(10**6) == b""


def test_the_byte_alphabet_is_the_librarys(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    ours = Tokenizer(tmp_path)
    seen = b"".join(ours.token_bytes(token) for token in range(256))
    assert sorted(seen) == list(range(256))
    assert len(pre_tokenizers.ByteLevel.alphabet()) == 256


def test_what_a_prompt_may_be(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    ours = Tokenizer(tmp_path)
    assert ours.encode_prompt([1, 2, 3]) == [1, 2, 3]
    assert ours.encode_prompt("Hi") == ours.encode_prompt([{"role": "user", "content": "Hi"}])
    assert ours.decode(ours.encode_prompt("Hi")) == "user: Hi\nassistant:"
    with pytest.raises(RequestError, match="a text, a list of messages or a list of token ids"):
        ours.encode_prompt([1, {"role": "user", "content": "Hi"}])  # type: ignore[list-item]
    (tmp_path / "chat_template.jinja").unlink()
    plain = Tokenizer(tmp_path)
    assert plain.decode(plain.encode_prompt("Hi")) == "Hi"
    with pytest.raises(RequestError, match="no chat template"):
        plain.encode_prompt([{"role": "user", "content": "Hi"}])


def test_a_directory_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"tokenizer_config\.json cannot be read.*copy it again"):
        Tokenizer(tmp_path)
