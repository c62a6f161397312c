"""What a process may take of its own is bounded; weight files that it maps do not count."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bento_kv.errors import GraphLimitError
from bento_kv.runtime import limits
from bento_kv.runtime.memory import external_files, may_map
from bento_kv.runtime.session import open_session

MIB = 2**20
ROWS = 128 * 1024  # of 1024 bytes: much more than there is room for
ROOM = 64 * MIB


@contextmanager
def little_room(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(limits, "available_memory", lambda: ROOM)
    with limits.within_limits(60):
        yield


def graph(folder: Path, weights: str) -> Path:
    """Rows of a table that is in a file of its own."""
    table = TensorProto(name="table", data_type=TensorProto.UINT8, dims=[ROWS, 1024])
    table.data_location = TensorProto.EXTERNAL
    for key, value in (("location", weights), ("offset", 0), ("length", ROWS * 1024)):
        table.external_data.add(key=key, value=str(value))
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    rows = helper.make_tensor_value_info("rows", TensorProto.UINT8, None)
    node = helper.make_node("Gather", ["table", "ids"], ["rows"])
    model = helper.make_model(
        helper.make_graph([node], "g", [ids], [rows], [table]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )
    onnx.save(model, folder / "model.onnx")
    (folder / weights).parent.mkdir(exist_ok=True)
    with (folder / weights).open("wb") as file:
        file.truncate(ROWS * 1024)
    return folder / "model.onnx"


def taken_bytes() -> int:
    """What the kernel counts against the limit."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("weights", ["model.onnx.data", "weights/table.bin"])
def test_weights_larger_than_what_is_left_are_mapped(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice, since a command may open a graph more than once."""
    file = graph(tmp_path, weights)
    with little_room(monkeypatch):
        sessions = [open_session(file, threads=1) for _ in range(2)]
        for session in sessions:
            (rows,) = limits.run(session, ["rows"], {"ids": np.array([0, ROWS - 1])})
            assert rows.shape == (2, 1024)


def test_what_is_mapped_leaves_no_more_for_the_process_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = graph(tmp_path, "model.onnx.data")
    with little_room(monkeypatch):
        session = open_session(file, threads=1)
        with pytest.raises(GraphLimitError, match="Gather"):
            limits.run(session, ["rows"], {"ids": np.zeros(ROWS, np.int64)})


def test_a_limit_that_the_process_came_with_holds(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    file = graph(tmp_path, "model.onnx.data")
    taken = int(
        next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmData" in line).split()[1]
    )
    given = taken * 1024 + ROOM
    resource.setrlimit(resource.RLIMIT_DATA, (given, before[1]))
    try:
        with limits.within_limits(60), pytest.raises(GraphLimitError):
            open_session(file, threads=1)
        assert resource.getrlimit(resource.RLIMIT_DATA) == (given, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def test_the_limit_is_what_it_was_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    file = graph(tmp_path, "model.onnx.data")
    with little_room(monkeypatch):
        tight = resource.getrlimit(resource.RLIMIT_DATA)[0]
        with may_map([file.parent / "model.onnx.data", file.parent / "nothing.here"]):
            assert resource.getrlimit(resource.RLIMIT_DATA)[0] >= tight + ROWS * 1024
        assert resource.getrlimit(resource.RLIMIT_DATA)[0] < tight + ROWS * 1024
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_what_was_mapped_before_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session(graph(tmp_path, "model.onnx.data"), threads=1)
    with little_room(monkeypatch):
        assert resource.getrlimit(resource.RLIMIT_DATA)[0] < taken_bytes() + ROOM + ROWS * 1024 // 2
    assert session.get_inputs()


def test_external_files_are_told_from_the_graph(tmp_path: Path) -> None:
    file = graph(tmp_path, "weights/table.bin")
    (tmp_path / "another").write_bytes(b"x")
    assert list(external_files(file)) == [tmp_path / "weights" / "table.bin"]
    (tmp_path / "empty.onnx").touch()
    assert list(external_files(tmp_path / "empty.onnx")) == []
    assert list(external_files(tmp_path / "missing.onnx")) == []
