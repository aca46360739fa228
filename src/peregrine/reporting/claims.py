"""Claims of a paper and what the measured seeds say about each, at a named scale.

Every test reduces to one number per seed - a statistic, a slope, a paired difference, a difference
of differences - and a two-sided t test of these numbers against the declared threshold, or two
one-sided ones where the claim is that they are equal, corrected for the number of tests of the
claim (Holm). A significant number on the claimed side supports, on
the other side contradicts, anything else is undecided, with the smallest effect that this many
seeds could have shown. Verdicts judge the direction at their scale, never a published number.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import Any

from peregrine.config.study import Claim, Test
from peregrine.errors import UserError
from peregrine.reporting.records import Evidence
from peregrine.reporting.statistics import (
    ALPHA,
    POWER,
    Estimate,
    detectable,
    equal_within,
    equivalence_p,
    estimate,
    holm,
    log_slopes,
    p_value,
    paired,
    pooled,
)
from peregrine.reporting.tables import rounded

TREND_LEVELS = 3
"""A trend needs at least this many values of its option: through two, any change is a trend."""


@dataclass(frozen=True)
class Finding:
    """A test with its number for each seed, and what became of the seeds behind it."""

    test: Test
    label: str
    rows: tuple[str, ...]
    values: Mapping[int, float] = field(default_factory=dict)
    missing: int = 0
    failed: int = 0
    lost: int = 0  # of the failed ones, those that leave no conclusion
    remark: str = ""
    lacking: tuple[str, ...] = ()  # rows that the scale does not run, so that nothing is tested
    levels: Mapping[float, float] = field(default_factory=dict)  # of a trend: option -> mean
    p: float | None = None  # Holm-corrected
    detectable: float | None = None

    @cached_property
    def found(self) -> Estimate:
        return estimate(list(self.values.values()))

    @property
    def verdict(self) -> str:
        if self.lost:  # no conclusion from the seeds that survived
            return "contradicted" if self.test.on_failure == "contradicted" else "undecided"
        if not self.values:
            return "not run"
        if self.p is None or self.p >= ALPHA:
            return "undecided"
        if self.test.kind == "equivalent":
            inside = abs(self.found.mean) < self.test.threshold
            return "supported" if inside else "contradicted"
        above = self.found.mean > self.test.threshold
        claimed = self.test.kind == "differs" or above == (self.test.kind != "below")
        return "supported" if claimed else "contradicted"

    @property
    def interval(self) -> list[float | None] | None:
        found = self.found
        return None if found.low is None else [rounded(found.low), rounded(found.high)]

    def notes(self) -> str:
        """What a reader must know beside the numbers."""
        out = [self.remark] if self.remark else []
        out += [f"seeds missing: {self.missing}"] if self.missing else []
        counted = ", those with a value counted as they ended" if self.lost < self.failed else ""
        out += [f"seeds failed: {self.failed}{counted}"] if self.failed else []
        if not self.values and not out:
            ceiling = f", or its ceiling {self.test.ceiling} is 0" if self.test.ceiling else ""
            out.append(f"no seed has {self.test.metric} of every row{ceiling}")
        if self.verdict == "undecided" and len(self.values) == 1:
            out.append("one seed has no interval")
        if self.verdict == "undecided" and self.detectable is not None:
            equal = self.test.kind == "equivalent"
            what = "equal rows to be equal within" if equal else "an effect of"
            out.append(
                f"undecided: {len(self.values)} seeds would have shown {what}"
                f" {self.detectable:.3g} with {POWER:.0%} power"
            )
        if self.verdict == "contradicted":
            out.append("contradicted")
        return "; ".join(out)

    def as_json(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "kind": self.test.kind,
            "metric": self.test.metric,
            "verdict": self.verdict,
            "effect": rounded(self.found.mean),
            "interval": self.interval,
            "p": rounded(self.p),
            "detectable": rounded(self.detectable),
            "threshold": self.test.threshold,
            "any_row": self.test.any_row,
            "seeds": len(self.values),
            "missing": self.missing,
            "failed": self.failed,
            "remark": self.notes(),
            "evidence": list(self.rows),
            "lacking": list(self.lacking),
            "levels": [[option, rounded(mean)] for option, mean in self.levels.items()],
        }


def judge(claim: Claim, evidence: Evidence) -> dict[str, Any]:
    """A claim as it stands in claims.json; numbers rounded to six decimals.

    A claim needs all of its tests: one contradiction is enough to contradict it, beside a test
    that supports it is 'mixed', and a part that no test covers, or a test of which the scale runs
    only some rows, keeps it from being 'supported'. A test of which the scale runs no row is of
    other data or another net: it is named, and the verdict, which is the scale's, is left to the
    others. Where any row or test will do, one that supports is enough, and all must contradict.

    `effect` and `interval` are those of the first test with the claim's own verdict, `votes` the
    number of tests behind each verdict; `barred` says why it cannot be 'supported' at this scale,
    and while planned seeds are missing the verdict is `interim`.
    """
    findings = measured(claim, evidence)
    here = [test for test in claim.tests if _present(test, evidence)]
    votes = [
        verdict
        for _, part in groupby(findings, lambda f: id(f.test))
        if (of_test := list(part))[0].test in here
        for verdict in _parts(of_test)
    ]
    verdict = _combined(votes, claim.any_test)
    barred = _barred(claim, here, evidence)
    if verdict == "supported" and barred:
        verdict = "undecided"
    valued = [finding for finding in findings if finding.values]
    lead = next((f for f in valued if f.verdict == verdict), valued[0] if valued else None)
    return {
        "id": claim.id,
        "statement": claim.statement,
        "verdict": f"{verdict} @{evidence.scale}",
        "votes": dict(sorted(Counter(votes).items())),
        "barred": barred,
        "interim": any(finding.missing for finding in findings),
        "scale": evidence.scale,
        "tests": [finding.as_json() for finding in findings],
        "effect": rounded(lead.found.mean) if lead else None,
        "interval": lead.interval if lead else None,
        "evidence": list(dict.fromkeys(row for finding in valued for row in finding.rows)),
        "reason": " | ".join(_reason(claim, findings)),
    }


def measured(claim: Claim, evidence: Evidence) -> list[Finding]:
    """What the seeds say on each test of a claim, corrected for the number of tests and looks."""
    findings = [f for test in claim.tests for f in _measured(test, evidence)]
    return _corrected(findings, evidence.looks)


def _present(test: Test, evidence: Evidence) -> bool:
    """Whether the scale runs any row of a test."""
    return any(row in evidence.cells for row in test.every_row)


def _reason(claim: Claim, findings: Sequence[Finding]) -> Iterator[str]:
    """What no test covers, then what is to be known of the tests, each note said once."""
    if claim.not_run:
        yield claim.not_run
    notes = [(finding.label, finding.notes()) for finding in findings]
    for note in dict.fromkeys(note for _, note in notes if note):
        labels = [label for label, other in notes if other == note]
        who = "all tests" if 1 < len(labels) == len(findings) else "; ".join(labels)
        yield f"{who}: {note}"


def _parts(findings: Sequence[Finding]) -> list[str]:
    """What the findings of one test add to the claim: a verdict each, or one for all of them."""
    test, verdicts = findings[0].test, [finding.verdict for finding in findings]
    if not test.any_row or set(verdicts) == {"not run"}:
        return verdicts
    # A row that the scale does not run might have been the one.
    none = verdicts == ["contradicted"] * len(test.rows)
    return ["supported" if "supported" in verdicts else "contradicted" if none else "undecided"]


def _barred(claim: Claim, here: Sequence[Test], evidence: Evidence) -> str:
    """Why the claim cannot be 'supported' at this scale, whatever its seeds say."""
    if claim.not_run:
        return "a part of it has no test"
    gaps = [test for test in here if set(test.every_row) - set(evidence.cells) and not test.any_row]
    if not gaps or claim.any_test:
        return ""
    tests = "1 of its tests" if len(gaps) == 1 else f"{len(gaps)} of its tests"
    return f"{tests} lack{'s' * (len(gaps) == 1)} rows here"


def _combined(verdicts: Sequence[str], any_test: bool) -> str:
    kinds = set(verdicts)
    if kinds <= {"not run"}:
        return "not run"
    if any_test:
        found = kinds - {"not run"}
        kinds = found & {"supported"} or (found if len(found) == 1 else {"undecided"})
    if "contradicted" in kinds:
        return "mixed" if "supported" in kinds else "contradicted"
    return "supported" if kinds == {"supported"} else "undecided"


def _corrected(findings: Sequence[Finding], looks: int) -> list[Finding]:
    """The findings of a claim with their p values, corrected together, times the looks."""
    tested = [f for f in findings if len(f.values) > 1]
    p_values = (min(1.0, looks * p) for p in holm([_p(finding) for finding in tested]))
    out = []
    for finding in findings:
        if len(finding.values) > 1:
            # The smallest p is held against alpha / (tests x looks): the power is of this level.
            smallest = equal_within if finding.test.kind == "equivalent" else detectable
            shown = smallest(finding.found.sd, finding.found.n, alpha=ALPHA / (len(tested) * looks))
            finding = replace(finding, p=next(p_values), detectable=shown)
        out.append(finding)
    return out


def _p(finding: Finding) -> float:
    test = equivalence_p if finding.test.kind == "equivalent" else p_value
    return test(list(finding.values.values()), finding.test.threshold)


def _measured(test: Test, evidence: Evidence) -> Iterator[Finding]:
    """A test's number for each seed; above and below judge every row by itself."""
    here = [row for row in test.every_row if row in evidence.cells]
    absent = [row for row in test.every_row if row not in evidence.cells]
    remark = f"not run at scale {evidence.scale}" if absent else ""
    if absent and here:
        remark += f": {', '.join(absent)}"
        remark += "; that no row does it cannot be shown here" * test.any_row
    remark = "; ".join(filter(None, [remark, evidence.unplanned(test.metric)]))
    if test.kind in ("above", "below") and here:
        for row in here:
            label = f"{test.label}: {evidence.cells[row].label}"
            values = _series(test, row, evidence)
            yield _counted(Finding(test, label, (row,), values, remark=remark), evidence)
        return
    finding = Finding(test, test.label, tuple(here), remark=remark)
    if test.kind == "trend":
        levels = _levels(test, here, evidence)
        if len(levels) >= TREND_LEVELS:
            slopes = log_slopes(levels)
            means = {
                level: sum(series[seed] for seed in slopes) / len(slopes)
                for level, series in sorted(levels.items())
                if slopes
            }
            yield _counted(replace(finding, values=slopes, levels=means), evidence)
        else:
            short = f"a trend needs {TREND_LEVELS} values of {test.option}"
            remark = "; ".join(filter(None, [remark, short]))
            yield replace(finding, remark=remark, lacking=tuple(absent))
    elif absent:  # a contrast with a part left out is another contrast
        yield replace(finding, lacking=tuple(absent))
    else:
        values = contrast(test, lambda row: _series(test, row, evidence))
        yield _counted(replace(finding, values=values), evidence)


def _series(test: Test, row: str, evidence: Evidence) -> dict[int, float]:
    """Seed -> the metric, as a share of its ceiling where the test names one."""
    values = evidence.records.values(row, test.metric, test.reading)
    if test.ceiling is None:
        return values
    ceiling = evidence.records.values(row, test.ceiling, test.reading)
    return {seed: value / ceiling[seed] for seed, value in values.items() if ceiling.get(seed)}


def _levels(test: Test, rows: Sequence[str], evidence: Evidence) -> dict[float, dict[int, float]]:
    """Value of the test's option -> the series of the row that has it."""
    out: dict[float, dict[int, float]] = {}
    for row in rows:
        level = evidence.cells[row].option(test.option)
        if level <= 0 or level in out:
            raise UserError(
                f"study {evidence.study.name}, row {row}: a trend over {test.option} needs"
                f" different positive values, not {level:g}"
            )
        out[level] = _series(test, row, evidence)
    return out


def contrast(test: Test, series: Callable[[str], Mapping[int, float]]) -> dict[int, float]:
    """Seed -> mean over the pairs of (row - its partner); an interaction's minus its control's.

    Args:
        test: of a kind that compares rows.
        series: row -> seed -> number. The contrast is linear in these numbers.
    """

    def difference(rows: Sequence[str], against: Sequence[str]) -> dict[int, float]:
        return pooled([paired(series(a), series(b)) for a, b in zip(rows, against, strict=True)])

    found = difference(test.rows, test.against)
    if test.kind == "interaction":
        return paired(found, difference(test.control, test.control_against))
    return found


def _counted(finding: Finding, evidence: Evidence) -> Finding:
    """With the seeds that are missing or failed, and rows whose seeds may not be averaged."""
    records, test = evidence.records, finding.test
    series = {row: _series(test, row, evidence) for row in finding.rows}
    counts = [records.counts(row, test.metric, used) for row, used in series.items()]
    counts_too = series if test.on_failure == "as measured" else {}
    lost = [records.failed(row, test.metric) - set(counts_too.get(row, ())) for row in series]
    mixed = [row for row in finding.rows if records.mixed(row)]
    note = f"mixed seeds, not averaged: {', '.join(mixed)}" if mixed else ""
    return replace(
        finding,
        missing=sum(missing for missing, _ in counts),
        failed=sum(failed for _, failed in counts),
        lost=sum(map(len, lost)),
        remark="; ".join(filter(None, [finding.remark, note])),
    )
