"""Lists and numbers as a reader sees them."""

from peregrine.reporting.words import fixed, listed, plain


def test_long_lists_end_in_a_count():
    names = [f"r{i}" for i in range(1, 10)]
    assert listed(names[:1]) == "r1"
    assert listed(names[:7]) == "r1; r2; r3; r4; r5; r6; r7"  # never "and 1 more rows"
    assert listed(names[:8]) == "r1; r2; r3; r4; r5; r6; and 2 more rows"
    assert listed(names, most=2) == "r1; r2; and 7 more rows"


def test_numbers_have_a_true_minus_and_no_negative_zero():
    assert fixed(-1.26, 1) == "\u22121.3"
    assert fixed(-0.04, 1, signed=True) == fixed(0.04, 1, signed=True) == "0.0"
    assert plain([1, 0.5, "all"]) == "1, 0.5, all"
