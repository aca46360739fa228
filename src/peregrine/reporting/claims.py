"""Claims of a paper and what the measured seeds say about each, at a named scale.

Every test reduces to one number per seed - a statistic, a slope, a paired difference, a difference
of differences - and a two-sided t test of these numbers against the declared threshold, corrected
for the number of tests of the claim (Holm). A significant number on the claimed side supports, on
the other side contradicts, anything else is undecided, with the smallest effect that this many
seeds could have shown. Verdicts judge the direction at their scale, never a published number.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from peregrine.config.load import Cell
from peregrine.config.models import Claim, Study, Test
from peregrine.errors import UserError
from peregrine.reporting.records import Records
from peregrine.reporting.statistics import (
    ALPHA,
    Estimate,
    detectable,
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

Series = Callable[[str], dict[int, float]]
"""Row -> seed -> the test's statistic."""


@dataclass(frozen=True)
class Finding:
    """One test, decided. `values`: the number of each seed; `p`: Holm-corrected."""

    test: Test
    rows: tuple[str, ...]
    values: Mapping[int, float] = field(default_factory=dict)
    found: Estimate = Estimate(0)
    p: float | None = None
    detectable: float | None = None
    verdict: str = "not run"
    failed: int = 0
    missing: int = 0
    remark: str = ""

    @property
    def label(self) -> str:
        alone = self.test.kind in ("above", "below") and len(self.rows) == 1
        return f"{self.test.label}, {self.rows[0]}" if alone else self.test.label


def check_claim(study: Study, claim: Claim) -> None:
    """Raises UserError where a test names a row that the study lacks.

    Rows of baselines that are still to come are not written down: `not_run` says so in words.
    """
    for test in claim.tests:
        for row in (*test.rows, *test.against, *test.control, *test.control_against):
            if row not in study.rows:
                raise UserError(
                    f"study {study.name}: claim {claim.id}: row '{row}' is not a row of the study"
                )


def judge(claim: Claim, cells: Mapping[str, Cell], records: Records, scale: str) -> dict[str, Any]:
    """A claim as it stands in claims.json; numbers rounded to six decimals.

    Args:
        claim: the claim and its tests.
        cells: the rows that are run at this scale.
        records: what was measured.
        scale: its name, part of the verdict.
    """
    findings = [finding for test in claim.tests for finding in _measure(test, cells, records)]
    findings = _decide(findings)
    verdict = _combine([finding.verdict for finding in findings])
    if claim.not_run and verdict == "supported":
        verdict = "undecided"
    lead = next((f for f in findings if f.verdict == verdict and f.found.n), None)
    lead = lead or next((f for f in findings if f.found.n), None)
    return {
        "id": claim.id,
        "statement": claim.statement,
        "verdict": f"{verdict} @{scale}",
        "scale": scale,
        "tests": [_as_json(finding) for finding in findings],
        "effect": rounded(lead.found.mean) if lead else None,
        "interval": _interval(lead.found) if lead else None,
        "evidence": sorted({run for finding in findings for run in _runs(finding, cells)}),
        "reason": _reason(claim, findings, verdict),
    }


def _measure(test: Test, cells: Mapping[str, Cell], records: Records) -> list[Finding]:
    """The findings of one test, not decided yet: one per row where rows are judged singly."""

    def series(row: str) -> dict[int, float]:
        values = records.values(row, test.metric, test.reading)
        if test.ceiling is None:
            return values
        ceiling = records.values(row, test.ceiling, test.reading)
        return {s: values[s] / ceiling[s] for s in values if ceiling.get(s)}

    rows = tuple(row for row in test.rows if row in cells)
    everything = (*test.rows, *test.against, *test.control, *test.control_against)
    absent = [row for row in dict.fromkeys(everything) if row not in cells]
    note = f"not run at this scale: {', '.join(absent)}" if absent else ""
    if test.kind in ("above", "below"):
        if not rows:
            return [Finding(test, test.rows, remark=note)]
        return [_finding(test, (row,), series(row), series, records) for row in rows]
    if test.kind == "trend":
        levels = {_option(cells[row], test.option): series(row) for row in rows}
        if len(levels) < TREND_LEVELS:
            return [Finding(test, rows, remark=f"{note}; a trend needs {TREND_LEVELS} values")]
        return [replace(_finding(test, rows, log_slopes(levels), series, records), remark=note)]
    if absent:
        return [Finding(test, tuple(dict.fromkeys(everything)), remark=note)]
    values = pooled([paired(series(a), series(b)) for a, b in zip(test.rows, test.against)])
    if test.kind == "interaction":
        control = zip(test.control, test.control_against)
        values = paired(values, pooled([paired(series(a), series(b)) for a, b in control]))
    return [_finding(test, tuple(dict.fromkeys(everything)), values, series, records)]


def _finding(
    test: Test, rows: tuple[str, ...], values: Mapping[int, float], series: Series, records: Records
) -> Finding:
    counts = [records.counts(row, series(row)) for row in rows]
    missing, failed = (sum(each) for each in zip(*counts))
    mixed = [row for row in rows if records.mixed(row)]
    remark = f"mixed seeds: {', '.join(mixed)}" if mixed else ""
    found = estimate(list(values.values()))
    return Finding(
        test, rows, values, found, failed=failed, missing=missing, remark=remark
    )


def _option(cell: Cell, option: str | None) -> float:
    value: Any = cell.run.model_dump(mode="json")
    for part in (option or "").split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise UserError(
            f"study {cell.study}, row {cell.row}: option '{option}' is not a positive number"
        )
    return float(value)


def _decide(findings: Sequence[Finding]) -> list[Finding]:
    """Verdicts of a claim's tests, their p values corrected together."""
    tested = [i for i, finding in enumerate(findings) if finding.found.n > 1]
    raw = [p_value(list(findings[i].values.values()), _null(findings[i].test)) for i in tested]
    corrected = dict(zip(tested, holm(raw)))
    out = []
    for index, finding in enumerate(findings):
        if index in corrected:
            k, sd = finding.found.n, finding.found.sd
            # The smallest p is held against alpha / m; the same level makes the power honest.
            shown = detectable(sd, k, alpha=ALPHA / len(tested))
            finding = replace(finding, p=corrected[index], detectable=shown)
        out.append(replace(finding, verdict=_verdict(finding)))
    return out


def _null(test: Test) -> float:
    return test.threshold


def _verdict(finding: Finding) -> str:
    test = finding.test
    if finding.failed:
        return test.on_failure
    if finding.found.n == 0:
        return "not run"
    if finding.p is None or finding.p >= ALPHA:
        return "undecided"
    above = finding.found.mean > test.threshold
    claimed = test.kind == "differs" or above == (test.kind != "below")
    return "supported" if claimed else "contradicted"


def _combine(verdicts: Sequence[str]) -> str:
    """One verdict of many: a claim needs all of its tests, and one contradiction is enough."""
    kinds = set(verdicts)
    if kinds <= {"not run"}:
        return "not run"
    if "contradicted" in kinds:
        return "mixed" if "supported" in kinds else "contradicted"
    return "supported" if kinds == {"supported"} else "undecided"


def _reason(claim: Claim, findings: Sequence[Finding], verdict: str) -> str:
    """What decided, what is missing, and what these seeds could have shown."""
    out = [claim.not_run] if claim.not_run else []
    for finding in findings:
        notes = []
        if finding.failed:
            notes.append(f"{finding.failed} seeds failed")
        if finding.missing:
            notes.append(f"{finding.missing} seeds missing")
        if finding.remark:
            notes.append(finding.remark)
        if finding.verdict == "undecided" and finding.found.n == 1:
            notes.append("one seed has no interval")
        if finding.verdict == "not run" and not notes:
            notes.append(f"no seed has {finding.test.metric} of every row")
        if finding.verdict == "undecided" and finding.detectable is not None:
            notes.append(
                f"undecided: {finding.found.n} seeds would have shown an effect of"
                f" {finding.detectable:.3g} or more"
            )
        if finding.verdict == "contradicted" and not finding.failed:
            notes.append("contradicted")
        if notes:
            out.append(f"{finding.label}: {'; '.join(notes)}")
    return ". ".join(out)


def _runs(finding: Finding, cells: Mapping[str, Cell]) -> list[str]:
    return [row for row in finding.rows if row in cells]


def _interval(found: Estimate) -> list[float | None] | None:
    return None if found.low is None else [rounded(found.low), rounded(found.high)]


def _as_json(finding: Finding) -> dict[str, Any]:
    return {
        "label": finding.label,
        "kind": finding.test.kind,
        "metric": finding.test.metric,
        "verdict": finding.verdict,
        "effect": rounded(finding.found.mean),
        "interval": _interval(finding.found),
        "p": rounded(finding.p),
        "detectable": rounded(finding.detectable),
        "threshold": rounded(finding.test.threshold),
        "seeds": finding.found.n,
        "missing": finding.missing,
        "failed": finding.failed,
        "remark": finding.remark,
        "evidence": list(finding.rows),
    }
