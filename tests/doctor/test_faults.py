"""The table of faults is whole, and nothing outside it can be found."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from pydantic import ValidationError

from bento_kv.doctor.advice import checklist
from bento_kv.doctor.faults import (
    CHECKLIST,
    EXPORT_FAULTS,
    FAULTS,
    LOOP_FAULTS,
    ExportFaultId,
    Fault,
    ItemId,
    LoopFaultId,
)
from bento_kv.doctor.records import Diagnosis, Finding, PartDiagnosis
from tests.doctor import diagnoses


def _found(id: str) -> Finding:
    return Finding.model_validate({"id": id, "where": "step 1", "explain": "It is.", "fix": "Mend it."})


def test_every_id_has_its_row_and_every_row_an_id() -> None:
    assert tuple(fault.id for fault in EXPORT_FAULTS) == get_args(ExportFaultId)
    assert tuple(fault.id for fault in LOOP_FAULTS) == get_args(LoopFaultId)
    assert tuple(FAULTS) == (*get_args(ExportFaultId), *get_args(LoopFaultId))
    assert tuple(CHECKLIST) == get_args(ItemId)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=lambda fault: fault.id)
def test_a_row_is_to_be_read_behind_its_id(fault: Fault) -> None:
    for text in (fault.matter, fault.cause, fault.remedy):
        assert text
        assert not text.endswith(".")
    assert "\n" not in fault.matter


def test_an_unknown_id_is_no_finding_and_a_schema_lists_the_known_ones() -> None:
    with pytest.raises(ValidationError, match="past-present-unpaired"):
        _found("tensor <b>&amp;")
    step = diagnoses.golden(1)[0].model_dump()
    with pytest.raises(ValidationError, match="tokens-diverge"):
        type(diagnoses.golden(1)[0]).model_validate({**step, "findings": ["nan"]})  # a fault of the export
    schema = json.dumps(Diagnosis.model_json_schema())
    assert all(f'"{id}"' in schema for id in FAULTS)


@pytest.mark.parametrize("fault", LOOP_FAULTS, ids=lambda fault: fault.id)
def test_a_fault_of_the_loop_speaks_against_its_items_and_the_whole(fault: Fault) -> None:
    items = checklist(PartDiagnosis.of([]), PartDiagnosis.of([_found(fault.id)]))
    assert {item.id for item in items if item.state == "wrong"} == {*fault.items, "whole"}
    assert {item.id for item in items if item.state == "unknown"} == set()


@pytest.mark.parametrize("fault", EXPORT_FAULTS, ids=lambda fault: fault.id)
def test_a_fault_of_the_export_leaves_the_whole_unknown(fault: Fault) -> None:
    items = checklist(PartDiagnosis.of([_found(fault.id)]), PartDiagnosis.of([]))
    states = {item.id: item.state for item in items}
    assert (states["export"], states["whole"]) == ("wrong", "unknown")
    assert fault.items == ("export",)
