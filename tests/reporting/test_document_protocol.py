"""Where the grid of the probe was too narrow, as a report says it."""

from types import SimpleNamespace

from peregrine.reporting.document_protocol import EDGE, printed_edge
from peregrine.reporting.records import Measurement, Records

CELLS = {
    name: SimpleNamespace(label=label, id=run)
    for name, label, run in (
        ("wide", "Wide", "a"),
        ("twin", "Twin of wide", "a"),
        ("narrow", "Narrow", "b"),
        ("inside", "Inside", "c"),
    )
}


def records(**ends):
    return Records(
        [
            Measurement(
                "s", row, "", CELLS[row].id, seed, "corrected", "standard", EDGE, float(end)
            )
            for row, found in ends.items()
            for seed, end in enumerate(found)
        ],
        [],
    )


def test_rows_with_most_seeds_at_an_end_are_named_and_a_shared_run_once():
    found = records(wide=[1, 1, 0], twin=[1, 1, 0], narrow=[-1, 0, 1], inside=[0, 0, 0])
    assert printed_edge(found, CELLS) == (
        "Validation chose the largest C of the grid for most seeds of Wide (2 of 3), and for some"
        " seeds of 1 other row. Validation chose the smallest C of the grid for some seeds of 1"
        " row. Beyond the grid the probe of these seeds might be better."
    )


def test_nothing_is_said_where_no_row_is_at_an_end():
    assert printed_edge(records(inside=[0, 0]), CELLS) == ""
    assert printed_edge(Records([], []), CELLS) == ""
