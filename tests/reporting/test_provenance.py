"""What made the numbers, as a report prints it."""

from peregrine.reporting.provenance import printed_runs


def line(row, seed, **more):
    told = {"status": "finished", "detail": "", "code": "c1", "data": "d1", "device": "cpu"}
    return {"row": row, "label": row.upper(), "run": f"run-{row}", "seed": seed, **told, **more} | {
        "torch": "2"
    }


def test_what_all_rows_share_is_said_once():
    printed = printed_runs([line("a", "0"), line("a", "1"), line("b", "0"), line("b", "1")])
    assert printed["shared"] == [
        ["seeds", "0, 1 finished"],
        ["code of training", "c1"],
        ["data sum", "d1"],
        ["computed on", "cpu, torch 2"],
    ]
    assert printed["columns"] == []
    assert printed["rows"][1] == {"label": "B", "run": "run-b", "cells": []}


def test_what_rows_differ_in_is_a_column():
    lost = line("b", "1", status="missing", detail="no outcome.json", code="", data="")
    printed = printed_runs([line("a", "0"), line("a", "1"), line("b", "0", code="c2"), lost])
    assert [name for name, _ in printed["shared"]] == ["data sum", "computed on"]
    assert printed["columns"] == ["seeds", "code of training"]
    assert [row["cells"] for row in printed["rows"]] == [
        ["0, 1 finished", "c1"],
        ["0 finished; 1 missing (no outcome.json)", "c2"],
    ]


def test_a_row_of_which_nothing_is_there_has_dashes():
    nothing = line("a", "0", status="missing", code="", data="", device="") | {"torch": ""}
    texts = dict(printed_runs([nothing])["shared"])
    assert texts["code of training"] == texts["data sum"] == "\u2013"
