"""The page of a diagnosis: sound HTML that loads nothing, and pictures that say what the numbers say."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from bento_kv.doctor.records import Diagnosis, LoopStep
from bento_kv.doctor.show.page import render_html
from bento_kv.doctor.show.shown import number
from tests.doctor import diagnoses

_VOID = {"meta", "br", "hr", "img", "link", "input"}


class _Page(HTMLParser):
    """Fails on what does not nest, and keeps what is there."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((tuple(self.open), data))

    def count(self, tag: str, **attributes: str) -> int:
        return sum(name == tag and attributes.items() <= given.items() for name, given in self.tags)

    def inside(self, tag: str) -> list[str]:
        return [text for place, text in self.texts if place and place[-1] == tag]

    def text(self) -> str:
        shown = (text for place, text in self.texts if not {"style", "title"} & set(place))
        return re.sub(r"\s+", " ", "".join(shown))


@pytest.fixture(params=range(len(diagnoses.every_kind())), scope="module")
def whole(request: pytest.FixtureRequest) -> Diagnosis:
    return diagnoses.every_kind()[request.param]


@pytest.fixture(scope="module")
def source(whole: Diagnosis) -> str:
    return render_html(whole)


@pytest.fixture(scope="module")
def page(source: str) -> _Page:
    return _Page(source)


def test_the_page_is_sound_and_loads_nothing(source: str, page: _Page) -> None:
    assert page.count("h1") == page.count("html", lang="en") == page.count("main") == 1
    assert not {"script", "link", "img", "iframe", "object", "form", "base", "use", "image"} & {t for t, _ in page.tags}
    assert "url(" not in source
    assert "@import" not in source
    assert "://" not in source
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    assert page.count("meta", **{"http-equiv": "Content-Security-Policy", "content": policy}) == 1
    assert not [name for _, given in page.tags for name in given if name.startswith("on")]


def test_every_link_leads_to_a_place_on_the_page(page: _Page) -> None:
    ids = [given["id"] for _, given in page.tags if "id" in given]
    assert len(ids) == len(set(ids))
    assert {given["href"] for tag, given in page.tags if tag == "a"} <= {f"#{name}" for name in ids}


def test_pictures_and_tables_have_words(whole: Diagnosis, source: str) -> None:
    for picture in re.findall(r"<svg.*?</svg>", source, re.DOTALL):
        assert 'aria-hidden="true"' in picture or re.match(
            r'<svg [^>]*role="img"[^>]*>\s*<title>[^<]+</title>', picture
        )
    tables = re.findall(r"<table.*?</table>", source, re.DOTALL)
    assert all("<caption>" in table for table in tables)
    assert not re.search(r"<th(?! scope)[ >]", source)
    assert len(tables) == bool(whole.measurements.loop) + bool(whole.measurements.steps)


def test_what_is_drawn_lies_on_the_picture(page: _Page) -> None:
    drawn = [given for tag, given in page.tags if tag in ("rect", "circle", "line")]
    places = [given[name] for given in drawn for name in ("x", "cx", "x1", "x2", "width") if name in given]
    percents = [float((place or "").removesuffix("%")) for place in places]
    assert all(0 <= percent <= 100 for percent in percents)
    heights = [float(given[name] or "") for given in drawn for name in ("y", "cy", "y1", "y2") if name in given]
    assert all(height >= 0 for height in heights)


@pytest.mark.parametrize(
    ("diagnosis", "first"),
    [
        (diagnoses.scenario_a(), "The export is right, the loop is wrong."),
        (diagnoses.scenario_b(), "The export and the loop are wrong."),
        (diagnoses.scenario_c(), "The export and the loop are right."),
        (diagnoses.scenario_d(), "The export is wrong, the loop is right."),
        (diagnoses.unloaded(), "The export is wrong, the loop could not be tried."),
    ],
)
def test_the_heading_is_the_verdict(diagnosis: Diagnosis, first: str) -> None:
    page = _Page(render_html(diagnosis))
    assert page.inside("h1") == [first]
    assert f"Scenario {diagnosis.scenario}" in page.text()


def test_everything_found_and_to_do_is_told() -> None:
    whole = diagnoses.scenario_b()
    text = _Page(render_html(whole)).text()
    for finding in (*whole.export.findings, *whole.loop.findings):
        assert all(part in text for part in (finding.id, finding.where, finding.explain, finding.fix))
    assert all(item.text in text for item in whole.checklist)
    assert all(line in text for line in whole.todo)
    target = ("models/tiny/model.onnx", "growing", "[batch, 2 heads, time, 16], 4 layers", "fp32", "trace.jsonl")
    assert all(fact in text for fact in (*target, "ai.onnx 18", "com.microsoft 1", "1.32.0"))


def test_commands_stand_alone_to_be_copied() -> None:
    whole = diagnoses.scenario_a()
    source = render_html(whole)
    assert re.findall(r"<pre[^>]*><code>(.*?)</code></pre>", source) == [whole.todo[2], whole.todo[4]]


def test_names_are_text_and_nothing_else() -> None:
    source = render_html(diagnoses.hostile())
    assert not set(map(ord, source)) & ({*range(32), *range(127, 160), 0x202E} - {10})
    assert "<script" not in source
    assert 'onload="' not in source
    assert r"<script>alert(1)</script>\n\x1b[31mred\x1b]0;title\x07\r\u202eback\x9b2J" in _Page(source).text()


def _tiles(source: str) -> list[tuple[str, str]]:
    return re.findall(r'<rect class="(in\d|over\d|nan)" x[^>]*><title>(.*?)</title>', source)


def test_a_heat_map_has_every_number() -> None:
    whole = diagnoses.scenario_b()
    expected = [
        f"step {step.step}, layer {layer}: {number(error)}" + (", over the limit" if (error or 0) > 1e-5 else "")
        for side in ("keys", "values")
        for step in whole.measurements.steps
        for layer, error in enumerate(getattr(step, side))
    ]
    assert [title for _, title in _tiles(render_html(whole))] == expected


def test_shades_change_at_the_limit() -> None:
    tiles = _tiles(render_html(diagnoses.scenario_b()))
    assert {("over the limit" in title, shade[:2]) for shade, title in tiles} == {(False, "in"), (True, "ov")}


@pytest.mark.parametrize(
    ("limit", "shades", "marked"),
    [
        (1e-5, ["in0", "in1", "in4", "over1", "over4", "nan"], "1e-5"),
        (0.0, ["in0", "over1", "over1", "over1", "over4", "nan"], "0"),
        (None, ["in0", "in1", "in1", "in1", "in4", "nan"], None),
    ],
)
def test_shades_of_one_step(limit: float | None, shades: list[str], marked: str | None) -> None:
    (step,) = diagnoses.errors(1, 1)
    step = step.model_copy(update={"keys": (0.0, 1e-9, 1e-5, 1.1e-5, 3e6, None), "values": ()})
    whole = diagnoses.scenario_c()
    measured = whole.measurements.model_copy(update={"limit": limit, "steps": (step,)})
    source = render_html(whole.model_copy(update={"measurements": measured}))
    assert [shade for shade, _ in _tiles(source)] == shades
    assert re.findall(r'class="at-limit">.*?</svg>(.*?)<b>limit', source) == ([] if marked is None else [marked])
    assert ('class="limit"' in source) == (limit is not None)


def test_many_layers_and_steps_keep_the_worst_in_sight() -> None:
    whole = diagnoses.scenario_c(count=300, layers=32)
    steps = list(whole.measurements.steps)
    steps[151] = steps[151].model_copy(update={"keys": (*steps[151].keys[:7], 0.5, *steps[151].keys[8:])})
    measured = whole.measurements.model_copy(update={"steps": tuple(steps)})
    tiles = _tiles(render_html(whole.model_copy(update={"measurements": measured})))
    assert len(tiles) <= 2 * 32 * 64
    (found,) = [title for shade, title in tiles if shade == "over4"]
    assert re.fullmatch(r"steps 150 to 154, layer 7: 0.5, over the limit", found)


def test_the_chart_tells_numbers_from_what_is_none() -> None:
    source = render_html(diagnoses.not_a_number())
    heights = [float(y) for y in re.findall(r'<circle class="dot" cx="[^"]*" cy="([^"]*)"', source)]
    (limit,) = [float(y) for y in re.findall(r'<line class="limit" x1="0" x2="100%" y1="([^"]*)"', source)]
    none = [float(y) for y in re.findall(r'<text class="dot over" x="[^"]*" y="([^"]*)"', source)]
    assert len(heights) == 2
    assert len(none) == 3
    assert max(none) < limit < min(heights)


def test_bars_are_to_scale() -> None:
    source = render_html(diagnoses.scenario_a())
    bars = re.findall(r'<svg class="bar".*?</svg>', source, re.DOTALL)
    widths = [[float(w) for w in re.findall(r'class="(?:past|new)"[^>]* width="([\d.]+)%"', bar)] for bar in bars]
    assert widths[0] == [0, 50]
    assert widths[1] == [0, 60, 50, 10]  # the empty past and six tokens; beneath, five cached and one new
    assert widths[5] == [0, 100, 90, 10]
    assert "step 1: 0 cached and 6 new, where it should have been 5 cached and 1 new" in source


def test_of_many_steps_the_wrong_ones_are_drawn_and_all_are_in_the_table() -> None:
    wrong = {90, 91, 200}
    bad = diagnoses.faulty(300)
    steps = tuple(bad[right.step] if right.step in wrong else right for right in diagnoses.golden(300))
    source = render_html(_looped(steps))
    drawn = {int(step) for step in re.findall(r"<title>step (\d+): [^<]* where it should", source)}
    assert drawn == wrong
    assert len(re.findall(r'<svg class="bar"', source)) < 40
    assert "steps 95 to 197: 103 more, as they should be" in source
    table = source[source.index("Every step as a table") :].split("</table>")[0]
    assert len(re.findall(r'<th scope="row">', table)) == 300
    assert "[1, 95] not [1, 1]" in table


def _looped(steps: tuple[LoopStep, ...]) -> Diagnosis:
    whole = diagnoses.scenario_a()
    return whole.model_copy(update={"measurements": whole.measurements.model_copy(update={"loop": steps})})


def test_nothing_runnable_says_so() -> None:
    page = _Page(render_html(diagnoses.unloaded()))
    assert "Nothing could be run, so there are no numbers." in page.text()
    assert "It could not be tried, so nothing is said of it." in page.text()
    assert page.count("svg") == 0


def test_notes_are_told_and_backquotes_are_code() -> None:
    notes = ("`present_length` is <64> at `every` step", "a lone ` stays")
    source = render_html(diagnoses.scenario_c().model_copy(update={"notes": notes}))
    assert "<li><code>present_length</code> is &lt;64&gt; at <code>every</code> step</li>" in source
    assert "<li>a lone ` stays</li>" in source
