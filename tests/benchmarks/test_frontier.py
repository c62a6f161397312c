"""A frontier's pure parts: which points nobody beats, tables, and the page they go to."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks.catalogue import ENGINES, choose
from benchmarks.frontier.contenders import CONTENDERS
from benchmarks.frontier.report import BEGIN, END, README, ahead, contenders, filled, frontiers, report, write_csv
from benchmarks.frontier.results import Frontier, Phases, Point, fastest_as_faithful, unbeaten
from benchmarks.results import Loaded, Record, Row
from benchmarks.workers.protocol import piece_of
from bento_kv.proof.evaluation import Quality


def _point(name: str, speed: float, kl: float) -> Point:
    return Point(contender=name, phase="decode", rows=1, speed=speed, lowest=speed, highest=speed, kl=kl)


def _names(points: list[Point]) -> str:
    return "".join(point.contender for point in points)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], ""),
        ([("a", 10, 0.1)], "a"),
        ([("a", 10, 0.1), ("b", 20, 0.2), ("c", 5, 0.05)], "bac"),
        ([("a", 10, 0.1), ("b", 20, 0.1)], "b"),
        ([("a", 10, 0.1), ("b", 10, 0.2)], "a"),
        ([("a", 10, 0.1), ("b", 10, 0.1)], "ab"),
        ([("a", 10, 0.1), ("b", 9, 0.11), ("c", 11, float("nan"))], "a"),
    ],
)
def test_the_frontier_is_whom_nobody_beats_the_fastest_first(
    points: list[tuple[str, float, float]], expected: str
) -> None:
    assert _names(unbeaten([_point(*each) for each in points])) == expected


def test_the_fastest_of_those_that_lose_no_more() -> None:
    points = [_point("a", 10, 0.1), _point("b", 20, 0.2), _point("c", 5, 0.05)]
    assert fastest_as_faithful(points, 0.1) == points[0]
    assert fastest_as_faithful(points, 0.3) == points[1]
    assert fastest_as_faithful(points, 0.01) is None


def _quality(kl: float) -> Quality:
    return Quality(positions=9, kl=kl, kl_99=kl, agreement=0.9, perplexity=11.0, reference_perplexity=10.0)


def _row(engine: str, speed: float, rows: int = 1) -> Row:
    return Row(
        engine=engine,
        model="m",
        precision="int4",
        phase="decode",
        rows=rows,
        context=256,
        median=speed,
        minimum=speed - 1,
        maximum=speed + 1,
        rounds=5,
    )


@pytest.fixture
def found() -> Frontier:
    record = Record(machine={"processor": "p"}, threads=2, rounds=5, bandwidth={})
    record.rows = [
        _row("bento_kv-int4-batch", 30),
        _row("llama.cpp", 20),
        _row("llama.cpp-flash", 25),
        _row("llama.cpp", 40, rows=4),
    ]
    record.loaded = [
        Loaded(engine=name, model="m", load_seconds=1, resident_mib=1, peak_mib=peak, idle_load=0, versions={})
        for name, peak in (("llama.cpp", 300.0), ("llama.cpp-flash", 200.0))
    ]
    quality = {
        name: Phases(prefill=_quality(kl / 2), decode=_quality(kl))
        for name, kl in (("bento_kv int4", 0.1), ("llama.cpp Q4_0", 0.2))
    }
    bits = dict.fromkeys(quality, 4.5)
    return Frontier(model="m", parameters=10**6, text="t", note="On a grid.", record=record, quality=quality, bits=bits)


def test_the_faster_way_of_running_counts_and_the_memory_of_the_smaller(found: Frontier) -> None:
    assert [(point.contender, point.speed) for point in found.points("decode", 1)] == [
        ("bento_kv int4", 30),
        ("llama.cpp Q4_0", 25),
    ]
    assert found.peak_mib("llama.cpp Q4_0") == 200
    assert found.peak_mib("bento_kv int4") is None


def test_tables_leave_empty_what_was_not_measured(found: Frontier) -> None:
    assert "| **bento_kv int4** | 4.5 |  | 0.05 | 0.1 | 1.100 | 90.0% | 30 |  |" in contenders(found)
    assert "| x1 | bento_kv int4 (0.1) |" in frontiers(found)
    assert ahead(found).endswith("| llama.cpp Q4_0 | 1.20 |  |")


def test_prose_is_wrapped_and_says_what_the_reader_has_to_know(found: Frontier) -> None:
    found.note = "On a grid, which flatters. " * 9
    text = report(found)
    assert "On a grid" in text
    assert all(len(line) <= 100 or line.startswith("|") for line in text.splitlines())


def test_what_was_written_is_read_again(found: Frontier, tmp_path: Path) -> None:
    assert Frontier.read(found.write(tmp_path)) == found


def test_a_line_of_the_csv_a_contender_and_cell(found: Frontier, tmp_path: Path) -> None:
    write_csv(found, tmp_path / "f.csv")
    head, *lines = (tmp_path / "f.csv").read_text().splitlines()
    assert head.startswith("# ")
    rows = list(csv.DictReader(lines))
    assert [(row["contender"], row["rows"], row["kl"]) for row in rows] == [
        ("bento_kv int4", "1", "0.1"),
        ("llama.cpp Q4_0", "1", "0.2"),
        ("llama.cpp Q4_0", "4", "0.2"),
    ]


def test_a_page_is_filled_between_its_marks_as_often_as_one_likes() -> None:
    once = filled(f"a\n{BEGIN}\n{END}\nb\n", "one")
    assert once == f"a\n{BEGIN}\n\none\n\n{END}\nb\n"
    assert filled(once, "two") == once.replace("one", "two")
    filled(README.read_text(), "")
    with pytest.raises(ValueError, match="no place"):
        filled("a", "b")


def test_every_contender_is_of_engines_that_there_are() -> None:
    assert all(engine in ENGINES for engines in CONTENDERS.values() for engine in engines)
    assert all(engine.fingerprint for engine in ENGINES.values() if engine.files)


def test_a_familys_name_stands_for_those_that_take_part_by_default() -> None:
    assert [engine.name for engine in choose("llama.cpp")] == ["llama.cpp", "llama.cpp-flash"]
    assert [engine.name for engine in choose("openvino-int8")] == ["openvino-int8"]


def test_a_piece_of_text_follows_from_its_name() -> None:
    text = list(range(100))
    assert piece_of(text, "a", 10) == piece_of(text, "a", 10) != piece_of(text, "b", 10)
    assert piece_of(text, "a", 100) == text
