"""A template is a program of somebody's: whatever it does ends in time, within its memory, and as an answer."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from bento_kv.errors import ManifestError, RequestError, TemplateLimitError
from bento_kv.server import preparations
from bento_kv.text import chat_template
from bento_kv.text.chat_template import ChatTemplate
from bento_kv.text.renderer import PROCESSES, Renderer, Renderers
from bento_kv.text.rendering import processor_seconds

HI = [{"role": "user", "content": "Hi"}]
EVIL = [{"role": "user", "content": "evil"}]


@pytest.fixture(autouse=True, scope="module")
def renderer() -> Iterator[Renderer]:
    """One, with less time, so that the tests take less."""
    made = Renderer(cpu_seconds=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_template, "RENDERERS", made)
        yield made
    made.close()


def at_evil(attack: str) -> ChatTemplate:
    """A template that is harmless for all other messages."""
    return ChatTemplate("{% if messages[0].content == 'evil' %}" + attack + "{% endif %}ok", {})


LONG = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
TIME = {
    "a loop in a loop": LONG,
    "a namespace that counts": f"{{% set n = namespace(i=0) %}}{LONG.replace('{% endfor %}', '{% set n.i = n.i + 1 %}{% endfor %}', 1)}",
    "an exponent": "{{ 3 ** (10 ** 9) % 7 }}",
    "macros that call each other": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    ),
    "a filter over a long list": "{{ (range(99999) | list * 90) | sort | map('string') | sort | join('') | length }}"
    * 30,
    "a list within a list": "{{ (range(9999) | list * 999) | unique | list | length }}" * 30,
    "a long number written out": "{{ 7 ** 99999999 % 10 }}",
}
MEMORY = {
    "a text repeated": "{{ 'a' * 10 ** 10 }}",
    "a list repeated": "{{ ([1] * 10 ** 10) | length }}",
    "a text joined to itself": "{% set n = namespace(s='a') %}{% for i in range(50) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "a text added to itself": "{% set n = namespace(s='a') %}{% for i in range(50) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "a width": "{{ '%09999999999d' % 1 }}",
    "a width of format": "{{ '{:>9999999999}'.format(1) }}",
    "a text centred": "{{ 'a' | center(10 ** 10) }}",
    "a text replaced": "{{ ('a' * 10 ** 6).replace('a', 'b' * 10 ** 6) }}",
    "an indent": "{{ messages | tojson(indent=10 ** 10) }}",
    "a list of lists": "{% set n = namespace(s=[1]) %}{% for i in range(50) %}{% set n.s = n.s + n.s %}{% endfor %}",
}
SIZE = {
    "much in pieces": "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "much at once": "{{ 'a' * 9000000 }}",
}
REFUSED = {
    "1/0": ("{{ 1 / 0 }}", "ZeroDivisionError"),
    "a macro that calls itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "a number too large for a float": ("{{ 10 ** 400 * 1.5 }}", "OverflowError"),
    "an index out of range": ("{{ 'abc'.index('z') }}", "ValueError"),
    "a type": ("{{ 'a' + 1 }}", "TypeError"),
    "what is not there": ("{{ messages[0].a.b.c.d }}", "no attribute"),
    "a range that is too long": ("{% for i in range(10 ** 9) %}{% endfor %}", "OverflowError"),
    "its own words": ("{{ raise_exception('no evil here') }}", "no evil here"),
    "no words": ("{{ raise_exception('') }}", "TemplateError"),
    "a digit too many": ("{{ (messages | length + 9) ** 5000 }}", "ValueError"),
    "an attribute": ("{{ ''.__class__.__base__.__subclasses__() }}", "unsafe"),
    "a key": ("{{ {}.pop('a') }}", "unsafe|KeyError"),
    "a filter that is none": ("{{ messages | nothing }}", "nothing"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TIME)
def test_what_does_not_end_is_ended(name: str) -> None:
    if name in ("an exponent", "a long number written out"):  # Jinja computes constants when it compiles
        with pytest.raises(ManifestError, match="seconds of a processor"):
            at_evil(TIME[name])
        return
    template = at_evil(TIME[name])
    with pytest.raises(TemplateLimitError, match="more than 1 seconds of a processor"):
        template.render(EVIL)
    assert template.render(HI) == "ok"


@pytest.mark.parametrize("name", MEMORY)
def test_what_takes_too_much_memory_is_refused_it(name: str) -> None:
    try:
        template = at_evil(MEMORY[name])
    except ManifestError as error:
        assert "MiB of memory" in str(error)  # noqa: PT017 - or the rest goes on
        return
    with pytest.raises((TemplateLimitError, RequestError), match=r"MiB of memory|seconds|ValueError|OverflowError"):
        template.render(EVIL)
    assert template.render(HI) == "ok"


@pytest.mark.parametrize("name", SIZE)
def test_what_writes_too_much_is_cut_off(name: str) -> None:
    template = at_evil(SIZE[name])
    with pytest.raises(TemplateLimitError, match="8 million characters"):
        template.render(EVIL)
    assert template.render(HI) == "ok"


@pytest.mark.parametrize("name", REFUSED)
def test_whatever_it_raises_is_said(name: str) -> None:
    attack, words = REFUSED[name]
    template = at_evil(attack)
    with pytest.raises(RequestError, match=words) as caught:
        template.render(EVIL)
    assert caught.value.param == "messages"
    assert len(str(caught.value)) < 1200
    assert template.render(HI) == "ok"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(LONG, marks=pytest.mark.slow),
        "{{ 'a' * 10 ** 10 }}",
        "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
        "{{ " + "(" * 5000 + ")" * 5000 + " }}",
        "{{ " + "-" * 50_000 + "1 }}",
        "{{ a" + ".a" * 50_000 + " }}",
        "{% if a %}" * 3000 + "{% endif %}" * 3000,
        "x" * (2**20 + 1),
        "{% for %}",
    ],
)
def test_a_template_that_never_works_is_refused_when_it_is_made(text: str) -> None:
    with pytest.raises(ManifestError, match="chat template"):
        ChatTemplate(text, {})


def test_a_deep_chain_of_attributes_is_undefined() -> None:
    with pytest.raises(RequestError, match="undefined"):
        at_evil("{{ a" + ".a" * 50 + " }}").render(EVIL)


def test_it_sees_no_key_and_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even who leaves Jinja's sandbox is alone in a process without secrets in its environment."""
    monkeypatch.setenv("BENTO_KV_API_KEY", "secret")
    made = Renderer()
    made.ask({"text": "a", "tokens": {}, "marks": {}, "messages": None})
    process = made._process
    assert process is not None
    with open(f"/proc/{process.pid}/environ") as file:
        assert "secret" not in file.read()
    made.close()


def test_it_is_asked_by_many_threads_and_answers_each() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {})
    wrong: list[str] = []

    def ask(number: int) -> None:
        for turn in range(20):
            text = f"{number} {turn} \ud800 \u2028"
            if template.render([{"role": "user", "content": text}]) != text:
                wrong.append(text)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_it_is_started_again_when_somebody_has_ended_it(renderer: Renderer) -> None:
    template = ChatTemplate("ok", {})
    assert renderer._process is not None
    renderer._process.kill()
    with pytest.raises(Exception, match="ended with status"):
        template.render(HI)
    assert template.render(HI) == "ok"


@pytest.fixture
def renderers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Renderers]:
    made = Renderers(cpu_seconds=1)
    monkeypatch.setattr(chat_template, "RENDERERS", made)
    yield made
    made.close()


@pytest.mark.parametrize("slow", range(PROCESSES))
def test_who_asks_for_little_does_not_wait_for_a_long_rendering(renderers: Renderers, slow: int) -> None:
    """Of all threads that prepare requests but one."""
    template = at_evil(LONG)
    over: list[str] = []

    def attack() -> None:
        try:
            template.render(EVIL)
        except TemplateLimitError as error:
            over.append(str(error))

    threads = [threading.Thread(target=attack) for _ in range(slow)]
    for thread in threads:
        thread.start()
    assert [template.render(HI) for _ in range(3)] == ["ok"] * 3
    assert over == []
    for thread in threads:
        thread.join()
    assert len(over) == slow


def test_no_more_processes_are_started_than_are_needed(renderers: Renderers) -> None:
    template = ChatTemplate("ok", {})
    for _ in range(5):
        assert template.render(HI) == "ok"
    assert len(renderers._made) == 1
    threads = [threading.Thread(target=template.render, args=(HI,)) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= len(renderers._made) <= PROCESSES


def test_there_is_a_process_for_each_thread_that_prepares() -> None:
    assert preparations._SHORT_THREADS + preparations._LONG_THREADS == PROCESSES


@pytest.mark.parametrize(("size", "seconds"), [(0, 1), (32 * 1024, 1), (2**18, 2), (2**20, 5), (2**24, 5)])
def test_who_asks_for_little_may_take_little(size: int, seconds: int) -> None:
    assert processor_seconds(size, 5) == seconds


@pytest.mark.slow
@pytest.mark.parametrize(("padding", "seconds"), [(0, 1), (300_000, 2)])
def test_what_is_asked_for_decides_how_long_it_may_take(padding: int, seconds: int) -> None:
    made = Renderer()
    messages = [{"role": "user", "content": "a" * padding}]
    asked = {"text": LONG, "tokens": {}, "marks": {}, "messages": messages, "now": "2026-01-01T00:00:00"}
    assert made.ask(asked) == {"over": f"{seconds} seconds of a processor"}
    made.close()


def test_it_ends_with_those_who_ask() -> None:
    code = (
        "import os; from bento_kv.text.chat_template import ChatTemplate, RENDERERS\n"
        "ChatTemplate('ok', {}); print(RENDERERS._made[0]._process.pid, flush=True); os._exit(0)"
    )
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    for _ in range(600):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except OSError:
            return
        threading.Event().wait(0.05)
    pytest.fail("it still runs")


def test_what_json_does_not_have_is_refused() -> None:
    with pytest.raises(RequestError, match="JSON"):
        ChatTemplate("ok", {}).render([{"role": "user", "content": object()}])
