"""What a report says of the scales that are like its own: sentences and a table for each claim."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peregrine.config.study import Figure
from peregrine.reporting.sensitivity import coverage
from peregrine.reporting.words import fixed, prose, unit_of

FIT = 5
"""Variations that stand side by side on a page; more go into parts below each other."""
NAMED = 3
"""Tests on the other side that a sentence names, told ones first; the table has all."""

ABOUT = (
    "Rows were trained again with one choice changed at a time; no verdict is made of these."
    " A change is the effect there minus the effect here, seed by seed over the seeds that both"
    " have; its 95 % t interval asks for two of them, and with two it is as wide as 9 standard"
    " deviations to either side. Intervals are not corrected for the number of comparisons: one in"
    " twenty leaves 0 out by chance. An effect changes sides where, over the seeds that both have,"
    " it is on the other side of the threshold of its test, for a difference of 0; one that prints"
    " as its threshold is on neither. As chosen, these seeds may lie elsewhere than all do. A table"
    " has the effect there and, behind"
    " \u0394, the change with the half-width of its interval. Bold is the other side, with a"
    " question mark where the seeds cannot tell: the interval of the change holds 0, or that of an"
    " effect, here or there, holds the threshold, or there is none."
)

IDLE = "no test of them has a number at a variation that changes one of its rows."
DECIDED = {"supported": "support", "contradicted": "contradict"}

Found = Mapping[str, Any]


def has_values(figure: Figure, lines: Sequence[Mapping[str, str]]) -> bool:
    """Whether a figure of kind sensitivity has a number of a changed row; others always."""
    if figure.kind != "sensitivity":
        return True
    panels = {(panel.metric, panel.reading) for panel in figure.panels}
    return any(x["row"] in figure.rows and (x["metric"], x["reading"]) in panels for x in lines)


def printed_sensitivity(found: Found, claims: Sequence[Found]) -> dict[str, Any] | None:
    """The section of a report from sensitivity.json; none where no changed row has a value.

    Args:
        claims: claims.json of the scale itself.
    """
    judged = {claim["id"]: claim for claim in claims}
    variations = found["variations"]
    if not any(line["valued"] for each in variations for line in each["rows"].values()):
        return None
    described = {each["name"]: each["description"] for each in variations}
    seeds = {each["name"]: len(each["seeds"]) for each in variations}
    idle = [claim["id"] for claim in found["claims"] if not claim["tests"]]
    return {
        "about": ABOUT,
        "orders": [_order(each, described) for each in found["orders"]],
        "coverage": [prose(text) for text in coverage(variations)],
        "idle": f"Whether {', '.join(idle)} depend on them is not known: {IDLE}" if idle else "",
        "claims": [
            {
                "id": claim["id"],
                "sentence": prose(" ".join(_sentences(claim, judged[claim["id"]], described))),
                "parts": [*_parts(claim["tests"], described, seeds)],
            }
            for claim in found["claims"]
            if claim["tests"]
        ],
    }


def _order(each: Found, described: Mapping[str, str]) -> str:
    taus = [
        f"{fixed(it['tau'], 2)} with {described[name]} ({it['rows']} rows)"
        for name, it in each["variations"].items()
    ]
    return (
        f"Order of rows by {each['label']}, beside that as chosen, over the seeds that both have"
        f" (Kendall's tau-b, 1 the same): {'; '.join(taus)}."
    )


def _sentences(claim: Found, judged: Found, described: Mapping[str, str]) -> Iterator[str]:
    yield from _behind(claim, judged)
    yield from _said(claim, described)
    yield from _lost(claim, described)


def _behind(claim: Found, judged: Found) -> Iterator[str]:
    """Of the tests that decide the verdict here, how many change sides at a variation."""
    said = []
    for verdict, verb in DECIDED.items():
        mine = [(t["label"], t["metric"]) for t in judged["tests"] if t["verdict"] == verdict]
        repeated = [t for t in claim["tests"] if (t["label"], t["metric"]) in mine]
        turned = sum(any(it["turned"] for it in t["variations"].values()) for t in repeated)
        if mine:
            text = (
                f"of {_several(len(mine), 'test')} that {verb}{'s' * (len(mine) == 1)} it"
                f" {len(repeated) or 'none'} {'was' if len(repeated) < 2 else 'were'} repeated"
            )
            if repeated:
                text += f", and {turned or 'none'} {'changes' if turned < 2 else 'change'} sides"
            said.append(text)
    if said:
        each = any(t.get("any_row") and t["verdict"] in DECIDED for t in judged["tests"])
        note = " (rows of which one is enough count each)" if each else ""
        yield f"{judged['verdict'].partition(' @')[0].capitalize()} here: {'; '.join(said)}{note}."


def _said(claim: Found, described: Mapping[str, str]) -> Iterator[str]:
    """How many comparisons there are, which change sides, how many are told, the largest."""
    tests = claim["tests"]
    every = [(test, name, it) for test in tests for name, it in test["variations"].items()]
    counts = sorted({it["change"]["seeds"] for _, _, it in every})
    yield (
        f"{len(tests)} of {_several(claim['measured'], 'test')} with a number here"
        f" {'was' if len(tests) == 1 else 'were'} repeated under"
        f" {_several(len({name for _, name, _ in every}), 'variation')}:"
        f" {_several(len(every), 'comparison')} of {_range(counts, 'shared seed')},"
        f" {_turned(every, described)}."
    )
    untold = sum(not it["apart"] for _, _, it in every)
    if untold:
        told = f"{untold} of {_several(len(every), 'change')} cannot be told from 0 by these seeds"
    else:
        told = "The interval of every change leaves 0 out"
    largest = _largest(every, described)
    yield f"{told}; the largest {'is' if len(largest) == 1 else 'are'} {'; '.join(largest)}."


def _several(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _turned(every: Sequence[tuple], described: Mapping[str, str]) -> str:
    """'no effect changes sides', or in which tests and variations it does, with both sizes."""
    turned = [each for each in every if each[2]["turned"]]
    if not turned:
        return "no effect changes sides"
    untold = sorted({it["seeds"] for _, _, it in turned if not _told(it)})
    text = f"{len(turned)} {'changes' if len(turned) == 1 else 'change'} sides"
    if untold:
        number = sum(not _told(it) for _, _, it in turned)
        which = f" in {number} of these" if number < len(turned) else ""
        text += f", which{which} {_range(untold, 'seed')} cannot tell (?)"
    by_test: dict[str, list[tuple]] = {}
    for each in sorted(turned, key=lambda each: not _told(each[2])):
        by_test.setdefault(each[0]["label"], []).append(each)
    named = []
    for label, mine in list(by_test.items())[:NAMED]:
        there = ", ".join(
            f"{_effect(test, it['effect'], unit=False)}{'' if _told(it) else '?'} with"
            f" {described[name]}"
            for test, name, it in mine
        )
        named.append(f"{label} ({_here(mine)}; {there})")
    if len(by_test) > NAMED:
        named.append(f"and {_several(len(by_test) - NAMED, 'more test')}, bold below")
    return f"{text}: {'; '.join(named)}"


def _here(mine: Sequence[tuple]) -> str:
    """The effect as chosen over the shared seeds; a range where those are not the same."""
    test = mine[0][0]
    effects = [it["as_chosen"]["effect"] for _, _, it in mine]
    ends = dict.fromkeys(
        _effect(test, effect, unit=False) for effect in (min(effects), max(effects))
    )
    return f"{' to '.join(ends)}{unit_of(test)[2]} here on these seeds"


def _told(it: Found) -> bool:
    """Whether the seeds tell that an effect is on the other side."""
    return it["apart"] and it["clear"]


def _range(numbers: Sequence[int], what: str) -> str:
    """'2 seeds', '1 to 3 seeds', of sorted numbers."""
    least = f"{numbers[0]} to " if len(numbers) > 1 else ""
    return f"{least}{_several(numbers[-1], what)}"


def _largest(every: Sequence[tuple], described: Mapping[str, str]) -> list[str]:
    """The largest change of each kind of number: points and scores are not held together."""
    kinds: dict[tuple[str, str], list[tuple]] = {}
    for each in every:
        if each[2]["change"]["effect"] is not None:
            last = each[0]["metric"].rpartition("/")[2]
            kinds.setdefault((last, _unit(each[0])[2]), []).append(each)
    out = []
    for each in kinds.values():
        test, name, it = max(each, key=lambda one: abs(one[2]["change"]["effect"]))
        size = _change(test, it["change"]["effect"]) + _unit(test)[2]
        out.append(f"{size}, {test['label']}, with {described[name]}")
    return out or ["unknown, as no seed is shared"]


def _unit(test: Found) -> tuple[float, int, str]:
    """Factor, decimals and unit of a change: that of a level in percent is in points."""
    times, decimals, unit = unit_of(test)
    return times, decimals, unit.replace(" %", " points")


def _effect(test: Found, effect: float, *, unit: bool = True) -> str:
    times, decimals, of = unit_of(test)
    signed = test["kind"] not in ("above", "below")
    return fixed(times * effect, decimals, signed=signed) + (of if unit else "")


def _change(test: Found, change: float) -> str:
    times, decimals, _ = _unit(test)
    return fixed(times * change, decimals, signed=True)


def _lost(claim: Found, described: Mapping[str, str]) -> Iterator[str]:
    """Failed and mixed seeds at the variations, and whether they are in the numbers."""
    words = {
        "counted": "Failed seeds, counted as they ended where they left a value",
        "left out": "Failed seeds, in no number",
        "mixed": "Mixed seeds, in no number",
    }
    for state, text in words.items():
        named = [
            f"{each['label']}, with {described[each['variation']]}"
            + (f" ({', '.join(map(str, each['seeds']))})" if each["seeds"] else "")
            for each in claim["lost"]
            if each["state"] == state
        ]
        if named:
            yield f"{text}: {'; '.join(named)}."


def _parts(
    tests: Sequence[Found], described: Mapping[str, str], seeds: Mapping[str, int]
) -> Iterator[dict[str, Any]]:
    """Tables of FIT variations at most: a line for each test that one of them concerns."""
    names = [name for name in described if any(name in test["variations"] for test in tests)]
    for start in range(0, len(names), FIT):
        of = names[start : start + FIT]
        yield {
            "columns": [described[name] for name in of],
            "rows": [
                {
                    "label": prose(test["label"]),
                    "here": _effect(test, test["effect"]),
                    "shared": _shared(test, of),
                    "cells": [_cell(test, test["variations"].get(n), seeds[n]) for n in of],
                }
                for test in tests
                if any(name in test["variations"] for name in of)
            ],
        }


def _shared(test: Found, names: Sequence[str]) -> str:
    """The effect as chosen over the seeds that `names` share, where here has more of them."""
    found = [test["variations"][name]["as_chosen"] for name in names if name in test["variations"]]
    first = found[0]
    if any(each != first for each in found) or not 0 < first["seeds"] < test["seeds"]:
        return ""
    return f"{_several(first['seeds'], 'seed')}: {_effect(test, first['effect'], unit=False)}"


def _cell(test: Found, it: Found | None, planned: int) -> dict[str, Any]:
    """Effect and change there; how many seeds are shared, where that is fewer than planned."""
    if it is None:
        return {"effect": "\u2013", "change": "", "turned": False}
    change = it["change"]
    text = "no seed is shared"
    if change["effect"] is not None:
        text = f"\u0394 {_change(test, change['effect'])}"
        if change["interval"]:
            times, decimals, _ = _unit(test)
            half = times * (change["interval"][1] - change["interval"][0]) / 2
            text += f" \u00b1 {fixed(half, decimals)}"
        if change["seeds"] < max(2, planned):
            text += f", {_several(change['seeds'], 'seed')}"
    effect = _effect(test, it["effect"], unit=False)
    effect += "?" if it["turned"] and not _told(it) else ""
    return {"effect": effect, "change": text, "turned": it["turned"]}
