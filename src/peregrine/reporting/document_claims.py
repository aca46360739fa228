"""Claims as a report prints them: numbers and remarks of every test, and what was not tested."""

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from peregrine.reporting.statistics import POWER, sd_range
from peregrine.reporting.words import NO_BREAK, fixed, listed, plain, prose, unit_of


def printed_claim(
    claim: Mapping[str, Any], not_run: str, labels: Mapping[str, str]
) -> dict[str, Any]:
    """A claim of claims.json, ready to print.

    Args:
        claim: as `collect` wrote it.
        not_run: what no test of it covers, as declared.
        labels: row -> label.

    Returns:
        Its texts, and those of the tests for which the scale has rows; `lacking` counts the others.
    """
    said: set[int | str] = set()
    verdict, _, scale = claim["verdict"].partition(" @")
    return {
        "id": claim["id"],
        "statement": prose(claim["statement"]),
        "verdict": verdict,
        "scale": scale,
        "state": _state(claim),
        "reason": prose(not_run[:1].upper() + not_run[1:]),
        "tests": [
            {
                "label": prose(test["label"]),
                "verdict": test["verdict"],
                "numbers": _test_numbers(test),
                "note": prose("; ".join(_test_notes(test, said)), labels),
            }
            for test in claim["tests"]
            if not test["lacking"]
        ],
        "lacking": _lacking([t["lacking"] for t in claim["tests"] if t["lacking"]], labels, scale),
    }


def printed_sd_range(seeds: int) -> str:
    """'0.6 to 2.9': the true standard deviation over the measured one, of as many seeds."""
    return " to ".join(f"{end:.1f}" for end in sd_range(seeds)) if seeds > 1 else ""


def _state(claim: Mapping[str, Any]) -> str:
    """What stands beside the verdict: 'interim: ...; tests: 1 contradicted, 3 supported'."""
    votes = {kind: n for kind, n in claim["votes"].items() if kind != "not run"}
    out = ["interim: planned seeds are missing"] if claim["interim"] and votes else []
    if len(votes) > 1:
        once = any(test.get("any_row") for test in claim["tests"])
        counted = "tests, any number of rows as one where one is enough: " if once else "tests: "
        out.append(counted + ", ".join(f"{n} {kind}" for kind, n in sorted(votes.items())))
    if claim["barred"] and votes:
        out.append(f"cannot be supported at this scale, as {claim['barred']}")
    return "; ".join(out)


def _lacking(tests: Sequence[Sequence[str]], labels: Mapping[str, str], scale: str) -> str:
    """'9 tests are not run at scale demo, which lacks the rows A; B; and 17 more rows.'"""
    rows = [labels[row] for row in dict.fromkeys(row for rows in tests for row in rows)]
    if not rows:
        return ""
    are = "1 test is" if len(tests) == 1 else f"{len(tests)} tests are"
    which = "row" if len(rows) == 1 else "rows"
    return f"{are} not run at scale {scale}, which lacks the {which} {prose(listed(rows))}."


def _test_numbers(test: Mapping[str, Any]) -> str:
    """'+1.20 points (95 %: +0.30 to +2.10), p = 0.01, 3 seeds'."""
    if test["effect"] is None:
        return ""
    times, decimals, unit = unit_of(test)
    level = test["kind"] in ("above", "below")

    def show(number: float) -> str:
        return fixed(times * number, decimals, signed=not level)

    text = show(test["effect"]) + unit
    if level:
        text += f" against {plain(times * test['threshold'])}{unit}"
    if test["interval"]:
        text += " (95 %: {} to {})".format(*map(show, test["interval"]))
    if test["p"] is not None:
        text += ", p < 0.001" if test["p"] < 0.001 else f", p = {test['p']:#.2g}"
    return f"{text}, {test['seeds']}{NO_BREAK}seed{'s' if test['seeds'] != 1 else ''}"


def _test_notes(test: Mapping[str, Any], said: set[int | str]) -> Iterator[str]:
    """The remark of a test, its power in the unit of its effect.

    `said` holds what the claim has already said: rows that are not run, and the numbers of seeds
    for which it stands there what power means.
    """
    for part in filter(None, test["remark"].split("; ")):
        if part.startswith("no seed has"):
            yield "not measured on every row"
        elif part.startswith("not run at scale"):
            scale, _, rows = part.partition(": ")
            if part not in said:
                yield f"{scale}: {listed(rows.split(', '))}" if rows else part
            said.add(part)
        elif not part.startswith(("undecided", "contradicted")):
            yield part
    if test.get("any_row"):
        yield "one such row is enough"
    if test["levels"]:
        times, decimals, _ = unit_of(test)
        means = ", ".join(fixed(times * mean, decimals) for _, mean in test["levels"])
        yield f"at {', '.join(plain(option) for option, _ in test['levels'])}: {means}"
    if test["verdict"] == "undecided" and test["detectable"] is not None:
        shown = "".join(could_show(test))
        what = "a true effect of"
        if test["kind"] == "equivalent":
            what = "equality within a margin of"
        found = Fraction(POWER).limit_denominator(20)
        often = f"{found.numerator} of {found.denominator} repetitions with {test['seeds']} seeds"
        if test["seeds"] in said:
            yield f"likewise {what} about {shown}"
        else:
            yield f"{what} about {shown} would be found in {often}"
        said.add(test["seeds"])


def could_show(test: Mapping[str, Any]) -> tuple[str, str]:
    """('1.2', ' points per tenfold'): the smallest effect that the seeds would have shown."""
    times, _, unit = unit_of(test)
    unit = unit.replace(" %", " points")
    if test["kind"] in ("above", "below"):
        unit += " from the threshold"
    return _two_digits(times * test["detectable"]), unit


def _two_digits(number: float) -> str:
    """Two significant digits, never in powers of ten: 41, 0.10."""
    if not number:
        return "0"
    rounded = float(f"{number:.1e}")
    return f"{rounded:.{max(0, 1 - math.floor(math.log10(abs(rounded))))}f}"
