"""Texts and chats that tokenizers and templates have been seen to disagree on."""

from __future__ import annotations

from collections.abc import Mapping

PROBES = (
    "",
    " ",
    "\n",
    "Hello, world!",
    " leading and trailing ",
    "two  spaces,   three,\ttab\n\nand two lines\r\n",
    "mixed\nends\r\nof\rlines\n\r\n\n\x0b\x0c\x85\u2028\u2029end",
    "naïve café, Straße, İstanbul, Ελλάδα, Москва",
    "中文、日本語、한국어。漢字かなカナ混じり文。",
    "הַשָּׁלוֹם עֲלֵיכֶם، مرحبا بالعالم ١٢٣ (RTL)",
    "हिन्दी में नमस्ते, ภาษาไทย, தமிழ், မြန်မာ",
    "🙂 👩‍👩‍👧 👨🏽‍💻 🏳️‍🌈 🇫🇷 1️⃣ é é",
    "𝒜𝓁𝓅𝒽𝒶 𝟘𝟙𝟚 Ⅷ ﬁ ½ № ™",
    "e\u0301a\u0323\u0302 Z\u0351\u036b\u0343\u036a\u0302 n\u0303 Å Å \uac01 \u1100\u1161\u11a8",
    "1234567890 3.14159 1e-9 1,000,000 0x7F 2026-11-23 +49 (0)30 12",
    "def f(x):\n    return x  # 4 spaces\n\n\tif a!=b&&c<=d: {[(\"'`~^|\\/@#$%*_-=+;:?>)]}\n",
    '<p class="a">&amp;</p> https://example.org/a?b=c&d=%20#e user@example.org C:\\dir',
    "don't I'll we've THEY'RE it's ' n't . , ! ?  .  ,  !",
    "CamelCase snake_case kebab-case ALLCAPS aBcDeF",
    "x" * 300,
    "Donaudampfschifffahrtsgesellschaftskapitän" * 6,
    "ab " * 100,
    " " * 40 + "far right" + " " * 17,
    "\t" * 9 + "tabs" + "\n" * 12,
    "\u00a0\u200b\ufeff\u2009\u3000\u00ad",
    "\x00\x01\x07\x08\x1b[0m\x7f",
    "\ufffd\uffff\U0010ffff\ue000",
    "\u202eright to left\u202c \u2066isolated\u2069",
)

Chat = tuple[Mapping[str, str], ...]


def _chat(*turns: str) -> Chat:
    """`role: content`, one a turn."""
    return tuple({"role": turn.split(":", 1)[0], "content": turn.split(":", 1)[1]} for turn in turns)


CHATS: tuple[Chat, ...] = (
    _chat("user:Hello"),
    _chat("system:Be brief.", "user: Hi\n"),
    _chat("user:One?", "assistant:One.", "user:Two? 🙂"),
    _chat("system:Be brief.", "user:One?", "assistant:One.", "user:Two?", "assistant:Two.", "user:Three?"),
    _chat("user:"),
    _chat("system:", "user:Hello", "assistant:", "user:  "),
    _chat("user:First.", "user:Second."),
    _chat("user:Hello", "assistant:Hi.", "assistant:Anything else?"),
    _chat("user:Hello", "assistant:I was about to"),
    _chat("user:Hello", "system:From now on in French."),
    _chat("assistant:I begin.", "user:Do."),
    _chat('user:{{ 7 * 7 }} {% if x %} <|im_end|> [INST] </s> <b>&amp;</b> "quoted" \\n'),
    _chat("user:中文 👩‍👩‍👧 \u202eright\u202c é\n\n  spaces  \r\n"),
    _chat("tool:42", "user:Well?"),
)
