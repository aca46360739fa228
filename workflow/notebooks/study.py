# %%
import hashlib
import json
from html import escape
from itertools import count, permutations
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML, Image, display
from scipy import stats

# %% tags=["parameters"]
folder = "../../results/demo/falcon"  # metrics.csv, runs.csv, claims.json, tables/, figures/
declarations = "falcon.json"  # what the study declared before any result, beside this notebook
study = "falcon"
scale = "demo"
eps = 0.005  # largest difference from a published share that counts as none
seeds = [0, 1, 2]

# %%
folder = Path(folder)
declared, printed = (json.loads(Path(declarations).read_text())[k] for k in ("declared", "printed"))
label = declared["labels"]
metrics = pd.read_csv(folder / "metrics.csv")
runs = pd.read_csv(folder / "runs.csv", dtype=str, keep_default_na=False).astype({"seed": int})
claims = json.loads((folder / "claims.json").read_text())
collected = json.loads((folder / "collected.json").read_text())

TONES = {
    "#00598c": ("supported", "reproduced", "consistent"),
    "#b8420a": ("contradicted", "above published", "below published"),
    "#8a6d00": ("mixed", "undecided", "inconclusive"),
}
number_of_table = count()


def tone(text):
    """Colour of a cell whose last line is a verdict."""
    last = str(text).split("\n")[-1]
    return next((f"color: {c}" for c, starts in TONES.items() if last.startswith(starts)), "")


def show(frame):
    """A frame as a table, verdicts in colour."""
    styled = frame.style.hide(axis="index").format(escape="html", na_rep="").map(tone)
    styled = styled.set_properties(**{"white-space": "pre-line"})
    display(HTML(styled.set_uuid(f"t{next(number_of_table)}").to_html()))


title, paper, about = (escape(printed[key]) for key in ("title", "paper", "scale_description"))
display(HTML(f"<h1>{title}</h1><p>A rerun of {paper} at scale <b>{scale}</b>.</p><p>{about}</p>"))
show(pd.DataFrame(printed["stands_in"], columns=["what stands in", "study as written", "here"]))
trained = printed["trained"]
if trained["rows"]:
    display(HTML("<p>Where several values stand, rows differ: the next table has them by row.</p>"))

# %% [markdown]
# ## How each row was trained
# Read from the resolved runs, as configured; a seed that collapsed ended before its last step. The
# learning rate is the peak as used, after scaling by batch / 256.

# %%
if trained["shared"]:
    display(HTML(f"<p>For all rows: {escape(trained['shared'])}.</p>"))
show(
    pd.DataFrame(
        [
            [row["label"], *(row["cells"] or [f"the same run as {row['same_as']}"])]
            for row in trained["rows"]
        ],
        columns=["", *trained["columns"]],
    )
)
if trained["untrained"]:
    display(HTML(f"<p>Not trained: {escape(trained['untrained'])}.</p>"))

# %% [markdown]
# ## Claims and verdicts, as reported
# A verdict judges the direction at this scale; "Claims, recomputed" below derives it again.

# %%
reported = pd.DataFrame(claims, columns=["id", "statement", "verdict"])
states = [[claim["state"], claim["reason"]] for claim in printed["claims"]]
show(reported.assign(remark=["; ".join(filter(None, state)) for state in states]))

# %% [markdown]
# ## Recomputed from the measurements
# This notebook trusts nothing but the measurements. From `metrics.csv` (one number per line: row,
# metric, reading, seed) and `runs.csv` (what became of every seed) it recomputes each cell of each
# table, each test of each claim and each verdict, in the open: pandas, numpy and scipy, nothing
# imported from the project. Wherever its result differs from what the report states by more than
# the stated six decimals, an assertion stops it: if you can read this page, all of them agree.
# Accuracies and scores are shares, 0 to 1, until they are printed.

# %%
ALPHA = 0.05  # error rate of every interval and test
PRECISION = 0.51e-6  # tables and claims state six decimals

# Nothing was changed since it was collected, measured twice, or measured with another seed.
assert (collected["study"], collected["scale"]) == (study, scale)
for name, checksum in collected["files"].items():
    assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == checksum, name
assert not metrics.duplicated(["row", "metric", "reading", "seed"]).any()
assert set(metrics["seed"]) <= set(seeds) == set(runs["seed"])

# %% [markdown]
# ## How a number is made
# * One value per seed and cell. Seeds of a row that differ in data, code or trust in the data are
#   "mixed" and never averaged.
# * Mean, standard deviation with divisor k - 1, and the t interval with k - 1 degrees of freedom.
# * A gain is the mean over seeds of the *paired* difference: the same seed with and without.
# * Failed and missing seeds are counted, never dropped in silence. A collapsed seed that was
#   evaluated as it ended is in the mean, and counts as failed.

# %%
mixed_rows = set(runs["row"][runs["status"] == "mixed"])
lacking = runs[runs["not_available"].str.split().map(lambda names: "released" in names)]
no_released = set(lacking["row"])  # their method does not have the released reading: n/a


def values(row, metric, reading):
    """Seed -> value."""
    here = (metrics["row"] == row) & (metrics["metric"] == metric) & (metrics["reading"] == reading)
    if row in mixed_rows:
        here &= False
    return metrics[here].set_index("seed")["value"].sort_index()


def paired(a, b):
    """a - b of every seed that both have."""
    return (a - b).dropna()


def interval(x, level=1 - ALPHA):
    """(mean, sd, low, high) over seeds; NaN where too few."""
    k = len(x)
    mean, sd = x.mean(), x.std(ddof=1)
    half = stats.t.ppf((1 + level) / 2, k - 1) * sd / np.sqrt(k) if k > 1 else np.nan
    return mean, sd, mean - half, mean + half


def failing(row, metric):
    """Seeds that collapsed or ended in NaN, or whose evaluation with this metric diverged."""
    mine = runs[runs["row"] == row]
    failed = mine["status"].isin(["collapsed", "nan"]) | (
        mine["status"].isin(["mixed", "stale"]) & mine["detail"].str.match("(collapsed|nan)(;|$)")
    )
    diverged = values(row, f"{metric.partition('/')[0]}/diverged_at", "corrected")
    return set(mine["seed"][failed]) | set(diverged.index)


def lost(row, metric, used):
    """(missing, failed): seeds of a row without a value here, and all that failed."""
    mine, failed = runs[runs["row"] == row], failing(row, metric)
    missing = set(mine["seed"][mine["status"].isin(["missing", "incomplete", "stale"])])
    return len(missing - failed - set(used.index)), len(failed)


def same(ours, theirs):
    """Equal to the stated precision, or both undefined."""
    if pd.isna(ours) or pd.isna(theirs):
        return bool(pd.isna(ours) and pd.isna(theirs))
    return abs(ours - theirs) <= PRECISION


# %% [markdown]
# ## The verdict on a cell with a published number
# Let d be our mean minus the published value, k our seeds, n the published runs (1 where unknown),
# s our standard deviation, which stands for both sides, and tol = eps + half of the last printed
# digit. In this order:
#
# | verdict | when |
# |---|---|
# | failed | no seed has a value, and one failed |
# | not run | no seed has a value |
# | other set-up | not paper scale, or the paper's set-up is another one |
# | inconclusive | a seed failed, or there is only one |
# | reproduced | the 90 % interval of d, with noise s √(1/k + 1/n), lies within ± tol |
# | reproduced (printed value) | the 90 % interval of our mean lies within tol of the printed one |
# | consistent | inside the 95 % prediction interval and \|d\| ≤ tol: power lacks |
# | above / below published | outside the 95 % prediction interval and \|d\| > tol |
# | inconclusive | anything else |


# %%
def cell_verdict(x, failed, share, half_width, n, same_setup):
    k = len(x)
    if k == 0:
        return "failed" if failed else "not run"
    if not same_setup:
        return "other set-up"
    if failed or k == 1:
        return "inconclusive"
    mean, sd, low, _ = interval(x, level=1 - 2 * ALPHA)
    d, tol = abs(mean - share), eps + half_width
    both = sd * np.sqrt(1 / k + 1 / n)
    predicted = stats.t.ppf(1 - ALPHA / 2, k - 1) * both + half_width
    if d + stats.t.ppf(1 - ALPHA, k - 1) * both <= tol:
        return "reproduced"
    if d + (mean - low) <= tol:
        return "reproduced (printed value)"
    if d <= predicted and d <= tol:
        return "consistent"
    if d > predicted and d > tol:
        return "above published" if mean > share else "below published"
    return "inconclusive"


def random_nmi(codes, sizes):
    """Expected NMI of uniform random codes with classes of `sizes`: a code's count is binomial."""

    def x_log_x(m):
        x = np.arange(1, m + 1)
        return (stats.binom.pmf(x, m, 1 / codes) * x * np.log(x)).sum()

    n, shares = sum(sizes), np.array(sizes) / sum(sizes)
    of_codes = np.log(n) - codes / n * x_log_x(n)
    together = np.log(n) - codes / n * sum(x_log_x(m) for m in sizes)
    of_classes = -(shares * np.log(shares)).sum()
    return 2 * (of_classes + of_codes - together) / (of_classes + of_codes)


def recomputed(table, row, column, known):
    """One cell, as tables/*.csv has it."""
    x = values(row, column["metric"], column["reading"])
    base = table["baseline"].get(row)
    other = values(base, column["metric"], column["reading"])
    missing, failed = lost(row, column["metric"], x)
    mean, sd, low, high = interval(x)
    gain, _, gain_low, gain_high = interval(paired(x, other))
    unknown = (np.nan, "1", 0, None, False, None, "")
    number, unit, decimals, n, nmi, codes, tested = known.get((row, column["label"]), unknown)
    unit = {"1": 1.0, "%": 0.01}[unit]
    verdict = "mixed" if row in mixed_rows else ""
    if not verdict and len(x) == 0 and column["reading"] == "released" and row in no_released:
        verdict = "n/a"
    if not verdict and not pd.isna(number):
        same_setup = scale == "paper" and not table["other_setup"]
        same_setup = same_setup and row not in declared["overlaid"]
        half_width = 0.5 * 10.0**-decimals * unit
        verdict = cell_verdict(x, failed, number * unit, half_width, n or 1, same_setup)
        if table["assumed"] and verdict not in ("not run", "failed", "other set-up"):
            verdict += " under declared assumptions"
    chance = nmi and codes is not None
    return {
        **{"row": row, "column": column["label"]},
        **{"seeds": len(x), "missing": missing, "failed": failed},
        **{"mean": mean, "sd": sd, "low": low, "high": high},
        **{"gain": gain, "gain_low": gain_low, "gain_high": gain_high},
        **{"published": number * unit, "verdict": verdict},
        "published_chance": random_nmi(codes, declared["test_sets"][tested]) if chance else np.nan,
    }


# %% [markdown]
# ## Tables, recomputed
# Each line is compared with `tables/*.csv`; then the table is printed from the recomputed numbers:
# our mean ± half-width of its 95 % interval, the gain over the row's own baseline, the published
# number in the unit of ours - of an NMI with what uniform random codes, as many, give on the same
# test images -, the verdict. A table of which this scale runs no row is compared and
# named, but not printed.


# %%
def text(cell, column):
    """A cell in words."""
    times, digits = (100 if column["percent"] else 1), column["decimals"]
    if cell.seeds == 0:
        absent = "no result" if cell.row in declared["rows"] else "not run"
        lines = [] if cell.verdict == "n/a" else [absent]
    else:
        varies = cell.seeds > 1 and round(cell.sd, 6) > 0
        half = f" ± {times * (cell.high - cell.mean):.{digits}f}" if varies else ""
        lines = [f"{times * cell.mean:.{digits}f}{half}"]
    if cell.missing or cell.failed:
        lost_text = f", {cell.failed} failed" if cell.failed else ""
        lines.append(f"{cell.seeds} of {len(seeds)} seeds{lost_text}")
    if not pd.isna(cell.gain) and not column["metric"].endswith(
        ("_chance", "_ceiling", "/n_train")
    ):
        low, high = (f"{times * end:+.{digits}f}" for end in (cell.gain_low, cell.gain_high))
        lines.append(f"gain {times * cell.gain:+.{digits}f} ({low} to {high})")
    if not pd.isna(cell.published):
        lines.append(f"published {times * cell.published:.4g}")
    if not pd.isna(cell.published_chance):
        lines.append(f"random codes {cell.published_chance:.{digits}f}")
    return "\n".join(lines + [cell.verdict] * bool(cell.verdict))


compared = 0
for table in declared["tables"]:
    known = {(row, column): numbers for row, column, *numbers in table["published_values"]}
    places = [(row, column) for row in table["rows"] for column in table["columns"]]
    ours = pd.DataFrame([recomputed(table, row, column, known) for row, column in places])
    path = folder / "tables" / f"{table['id']}.csv"
    theirs = pd.read_csv(path, dtype={"verdict": str}, keep_default_na=False, na_values=[""])
    theirs["verdict"] = theirs["verdict"].fillna("")
    assert list(ours["row"] + ours["column"]) == list(theirs["row"] + theirs["column"])
    for key in ours.columns[2:]:
        for cell, a, b in zip(ours.itertuples(), ours[key], theirs[key]):
            at = f"table {table['id']}, {label[cell.row]}, {cell.column}"
            equal = a == b if isinstance(a, str) else same(a, b)
            assert equal, f"{at}: {key} is {a}, but the table says {b}"
    compared += len(ours)
    if not table["shown"]:
        continue

    base = {row: f"\nover {label[other]}" for row, other in table["baseline"].items()}
    page = {"": [label[row] + base.get(row, "") for row in table["rows"]]}
    for column in table["columns"]:
        cells = ours[ours["column"] == column["label"]].itertuples()
        page[column["label"]] = [text(cell, column) for cell in cells]
    display(HTML(f"<h3>{escape(table['title'])}</h3>"))
    show(pd.DataFrame(page))
    display(HTML(f"<p><small>{escape(table['note'])}</small></p>"))
if printed["left_out"]["tables"]:
    display(HTML(f"<p>{escape(printed['left_out']['tables'])}</p>"))
print(f"{compared} cells recomputed, all equal to tables/*.csv to six decimals")

# %% [markdown] tags=["ordering"]
# ## Order of rows, recomputed
# Of columns with four published numbers or more beside ours: Kendall's tau-b between the published
# numbers and our means, both at six decimals; from five rows on p, the share of the permutations of
# the rows with a tau-b as far from 0 (all of them up to eight rows, else 99,999 drawn ones); where
# all rows have the same seeds, two or more, the 95 % percentile interval of tau-b over 2,000 draws
# of seeds with replacement, rough where these are few. p is not corrected for the number of
# columns. An order says nothing of levels. Compared with `ordering.csv`.


# %% tags=["ordering"]
def order_p(x, y):
    """Share of permutations of y whose concordant less discordant pairs are as far from 0."""
    n = len(x)
    sx, sy = (np.sign(np.subtract.outer(z, z)).astype(int) for z in (x, y))
    if few := n <= 8:
        orders = np.array(list(permutations(range(n))))
    else:
        orders = np.random.default_rng(0).permuted(np.tile(np.arange(n), (99_999, 1)), axis=1)
    pairs = [(i, j) for i in range(n) for j in range(i)]
    scores = sum(sx[i, j] * sy[orders[:, i], orders[:, j]] for i, j in pairs)
    hits = (abs(scores) >= abs(sum(sx[pair] * sy[pair] for pair in pairs))).sum()
    return hits / len(orders) if few else (hits + 1) / (len(orders) + 1)


def order_interval(x, by_seed):
    """Ends over seeds; by_seed [seeds, rows]. Equal draws have one tau."""
    drawn = np.random.default_rng(0).integers(len(by_seed), size=(2000, len(by_seed)))
    drawn, times = np.unique(np.sort(drawn, axis=1), axis=0, return_counts=True)
    taus = [stats.kendalltau(x, by_seed[each].mean(axis=0).round(6)).statistic for each in drawn]
    return np.nanquantile(np.repeat(taus, times), [ALPHA / 2, 1 - ALPHA / 2])


orders = []
for table in declared["tables"]:
    for column in table["columns"]:
        x, found = [], []
        for row, name, number, unit, *_ in table["published_values"]:
            y = values(row, column["metric"], column["reading"])
            if name == column["label"] and len(y):
                x.append(round(number * {"1": 1.0, "%": 0.01}[unit], 6))
                found.append(y)
        if len(x) < 4:
            continue
        means = np.array([round(y.mean(), 6) for y in found])
        tau = stats.kendalltau(x, means).statistic
        if pd.isna(tau):
            continue
        p = order_p(np.array(x), means) if len(x) >= 5 else np.nan
        seeds_of = {tuple(y.index) for y in found}
        k, ends = np.nan, (np.nan, np.nan)
        if len(seeds_of) == 1 and len(found[0]) > 1:
            k, ends = len(found[0]), order_interval(x, np.array([y.to_numpy() for y in found]).T)
        at = [table["id"], column["label"], column["metric"], column["reading"]]
        orders.append([*at, len(x), tau, p, k, *ends])
stated = pd.read_csv(folder / "ordering.csv")
orders = pd.DataFrame(orders, columns=list(stated.columns))
assert len(orders) == len(stated), "ordering.csv has other lines"
for key in orders.columns:
    for it, a, b in zip(orders.itertuples(), orders[key], stated[key]):
        equal = a == b if isinstance(a, str) else same(a, b)
        assert equal, f"ordering.csv, {it.table}, {it.column}: {key} is {a}, not {b}"
show(orders.round(3))
print(f"{len(orders)} columns: all equal to ordering.csv")

# %% [markdown]
# ## Claims, recomputed
# Every test becomes one number per seed, and a two-sided t test of these numbers against the
# declared threshold; for "equivalent", where the mean lies within +- the threshold, two one-sided
# tests, of which the larger p counts. The p values of one claim are corrected together (Holm), and
# multiplied by the number of looks at the verdicts while seeds came.
#
# | kind | the number of a seed |
# |---|---|
# | above, below | the metric (over its ceiling, where one is named), each row by itself |
# | trend | least-squares slope per tenfold of the option, over at least three of its values |
# | difference, differs, equivalent | row minus partner, averaged over the pairs |
# | interaction | that difference minus the same of the control pairs |
#
# A significant number on the claimed side supports, on the other side contradicts; the rest is
# undecided. A test with a failed seed says what the study declared for that case. A claim needs all
# of its tests; a contradiction beside a support is mixed; a part without a test, or a test of which
# this scale runs only some rows, rules out "supported". A test of which it runs no row is of other
# data or another net and has no say. Where a test asks for any row, or a claim for any test, one
# that supports it is enough and only all of them contradict it.


# %%
def series(test, row):
    x = values(row, test["metric"], test["reading"])
    if test["ceiling"] is None:
        return x
    ceiling = values(row, test["ceiling"], test["reading"])
    return (x / ceiling[ceiling != 0]).dropna()


def mean_difference(test, rows, against):
    pairs = [paired(series(test, a), series(test, b)) for a, b in zip(rows, against)]
    return pd.concat(pairs, axis=1).dropna().mean(axis=1)


def slopes(test, rows):
    if len(rows) < 3:
        return None
    x = np.log10([declared["options"][test["option"]][row] for row in rows])
    x = x - x.mean()
    y = pd.concat([series(test, row) for row in rows], axis=1).dropna()
    return pd.Series(y.to_numpy() @ x / (x @ x), index=y.index, dtype=float)


def measured(test):
    """(test, label, rows, number of each seed, lost seeds, lacking rows) of each finding."""
    named = test["rows"] + test["against"] + test["control"] + test["control_against"]
    here = [row for row in dict.fromkeys(named) if row in declared["rows"]]
    if test["kind"] in ("above", "below") and here:
        found = [(f"{test['label']}: {label[row]}", [row], series(test, row)) for row in here]
    elif test["kind"] == "trend":
        found = [(test["label"], here, slopes(test, here))]
    elif set(here) < set(named):  # a contrast with a part left out is another contrast
        found = [(test["label"], here, None)]
    else:
        x = mean_difference(test, test["rows"], test["against"])
        if test["kind"] == "interaction":
            x = paired(x, mean_difference(test, test["control"], test["control_against"]))
        found = [(test["label"], here, x)]
    for name, rows, x in found:
        if x is None:
            lacking = [row for row in dict.fromkeys(named) if row not in here]
            yield test, name, rows, pd.Series(dtype=float), 0, lacking
        else:
            counted = test["on_failure"] == "as measured"  # as they ended
            gone = [
                failing(row, test["metric"]) - (set(series(test, row).index) if counted else set())
                for row in rows
            ]
            yield test, name, rows, x, sum(map(len, gone)), []


def p_value(x, null):
    error, distance = x.std(ddof=1) / np.sqrt(len(x)), abs(x.mean() - null)
    if error == 0:
        return 0.0 if distance else 1.0
    return 2 * stats.t.sf(distance / error, len(x) - 1)


def test_p(test, x):
    if test["kind"] != "equivalent":
        return p_value(x, test["threshold"])
    margin = test["threshold"]
    inside = abs(x.mean()) < margin
    return p_value(x, np.copysign(margin, x.mean())) / (2 if inside else 1)


def holm(p):
    """Each p times the number of those not smaller, never below the one before it."""
    out, before = {}, 0.0
    for rank, (key, value) in enumerate(sorted(p.items(), key=lambda item: item[1])):
        before = out[key] = min(1.0, max(before, (len(p) - rank) * value))
    return {key: min(1.0, declared["looks"] * value) for key, value in out.items()}


def test_verdict(test, x, failed, p):
    if failed:
        return "contradicted" if test["on_failure"] == "contradicted" else "undecided"
    if len(x) == 0:
        return "not run"
    if pd.isna(p) or p >= ALPHA:
        return "undecided"
    if test["kind"] == "equivalent":
        return "supported" if abs(x.mean()) < test["threshold"] else "contradicted"
    above = x.mean() > test["threshold"]
    claimed = test["kind"] == "differs" or above == (test["kind"] != "below")
    return "supported" if claimed else "contradicted"


def parts_of(test, verdicts):
    """The verdicts of a test's rows; one for all of them where any row will do."""
    if not test["any_row"] or set(verdicts) == {"not run"}:
        return verdicts
    # A row that the scale does not run might have been the one.
    none = verdicts == ["contradicted"] * len(test["rows"])
    return ["supported" if "supported" in verdicts else "contradicted" if none else "undecided"]


def claim_verdict(verdicts, has_gap, any_test):
    kinds = set(verdicts)
    if kinds <= {"not run"}:
        return "not run"
    if any_test:
        found = kinds - {"not run"}
        kinds = found & {"supported"} or (found if len(found) == 1 else {"undecided"})
    if "contradicted" in kinds:
        return "mixed" if "supported" in kinds else "contradicted"
    return "supported" if kinds == {"supported"} and not has_gap else "undecided"


# %%
page, tests = [], 0
assert [claim["id"] for claim in claims] == [claim["id"] for claim in declared["claims"]]
for claim, theirs, said in zip(declared["claims"], claims, printed["claims"]):
    found = [finding for test in claim["tests"] for finding in measured(test)]
    raw = {i: test_p(f[0], x) for i, f in enumerate(found) if len(x := f[3]) > 1}
    corrected, verdicts = holm(raw), []
    assert len(found) == len(theirs["tests"]), claim["id"]
    for i, (finding, entry) in enumerate(zip(found, theirs["tests"])):
        test, name, rows, x, failed, lacking = finding
        mean, _, low, high = interval(x)
        p = corrected.get(i, np.nan)
        verdicts.append(test_verdict(test, x, failed, p))
        at = f"claim {claim['id']}, {name}"
        assert (name, rows, len(x)) == (entry["label"], entry["evidence"], entry["seeds"]), at
        assert lacking == entry["lacking"], at
        ours = (mean, low, high, p)
        stated = (entry["effect"], *(entry["interval"] or (None, None)), entry["p"])
        assert all(map(same, ours, stated)), f"{at}: {ours}, but claims.json says {stated}"
        assert verdicts[-1] == entry["verdict"], f"{at}: {verdicts[-1]}"
        each = "\n".join(f"{seed}: {value:.4f}" for seed, value in x.items())
        if not lacking:
            page.append([claim["id"], name, each, mean, low, high, p, verdicts[-1]])
    tests += len(found)
    if said["lacking"]:
        page.append([claim["id"], said["lacking"], "", *[np.nan] * 4, ""])
    parts = ("rows", "against", "control", "control_against")
    named = [{row for part in parts for row in test[part]} for test in claim["tests"]]
    here = [i for i, rows in enumerate(named) if rows & set(declared["rows"])]
    whole = [i for i in here if not claim["tests"][i]["any_row"]]
    gaps = [i for i in whole if named[i] - set(declared["rows"])]
    has_gap = bool(claim["not_run"]) or bool(gaps and not claim["any_test"])
    together = [
        verdict
        for test in [claim["tests"][i] for i in here]
        for verdict in parts_of(test, [v for f, v in zip(found, verdicts) if f[0] is test])
    ]
    assert {v: together.count(v) for v in together} == theirs["votes"], claim["id"]
    verdict = f"{claim_verdict(together, has_gap, claim['any_test'])} @{scale}"
    assert verdict == theirs["verdict"], f"claim {claim['id']}: {verdict}"
    page.append([claim["id"], claim["statement"], "", *[np.nan] * 4, verdict])
header = ["claim", "test", "seed: its number", "mean", "low", "high", "p (Holm)", "verdict"]
show(pd.DataFrame(page, columns=header))
print(f"{len(claims)} claims with {tests} tests: all equal to claims.json")

# %% [markdown]
# ## Figures
# Drawn from the same measurements; the plotted numbers are in `figures/data/`.

# %%
for number, figure in enumerate(declared["figures"], start=1):
    display(HTML(f"<h3>{number}. {escape(figure['title'])}</h3>"))
    display(Image(data=(folder / "figures" / f"{figure['id']}.png").read_bytes()))
    display(HTML(f"<p>{escape(figure['caption'])}</p>"))
if printed["left_out"]["figures"]:
    display(HTML(f"<p>{escape(printed['left_out']['figures'])}</p>"))

# %% [markdown] tags=["sensitivity"]
# ## What the undocumented choices are worth
# Some rows were trained again at scales that change one choice. `sensitivity.json` has the number
# of every seed there. Recomputed from these, to six decimals: the effect there, and the change, the
# number there minus that here of every seed that both have, with its 95 % interval; "as_chosen" is
# the effect here over these seeds. "turned": over them the effects are on opposite sides of the
# threshold, as far as a report prints it; "apart": the interval of the change leaves 0 out;
# "clear": those of both effects leave the threshold out. "orders": Kendall's tau-b between rows
# there and here. No verdict is made of any of them.

# %% tags=["sensitivity"]
sensitivity = json.loads((folder / "sensitivity.json").read_text())
judged = {}  # (claim, label, metric) -> what claims.json says, number of each seed
for claim, theirs in zip(declared["claims"], claims):
    found = [finding for test in claim["tests"] for finding in measured(test)]
    for finding, entry in zip(found, theirs["tests"]):
        judged[claim["id"], entry["label"], entry["metric"]] = entry, finding[3]


def by_seed(numbers):
    return pd.Series({int(seed): value for seed, value in numbers.items()}, dtype=float)


def side(test, effect):
    """1 above the threshold, -1 below; of equality 1 within the margin, -1 beyond; 0 on it.

    To the two decimals of a point, or the three of any other number.
    """
    null = test["threshold"]
    distance = null - abs(effect) if test["kind"] == "equivalent" else effect - null
    points = test["metric"].endswith("accuracy")
    return np.sign(round(100 * distance, 2) if points else round(distance, 3))


def leaves_out(test, ends):
    """Whether an interval leaves the threshold out, of equality both ends of the margin."""
    null = test["threshold"]
    nulls = [-null, null] if test["kind"] == "equivalent" else [null]
    return ends is not None and not any(ends[0] <= each <= ends[1] for each in nulls)


def stated_as(x, said):
    """Whether mean, interval and number of seeds are those stated."""
    mean, _, low, high = interval(x)
    given = (said["effect"], *(said["interval"] or (None, None)))
    return said["seeds"] == len(x) and all(map(same, (mean, low, high), given))


page = []
for claim in sensitivity["claims"]:
    for test in claim["tests"]:
        ours, x = judged[claim["id"], test["label"], test["metric"]]
        at = f"sensitivity.json, {claim['id']}, {test['label']}"
        for key in ("effect", "interval", "seeds", "kind", "threshold"):
            assert test[key] == ours[key], f"{at}: {key} {test[key]}, in claims.json {ours[key]}"
        here = by_seed(test["values"])
        assert list(here.index) == list(x.index) and (abs(here - x) <= PRECISION).all(), at
        for name, there in test["variations"].items():
            y, change = by_seed(there["values"]), there["change"]
            assert stated_as(y, there), f"{at}, {name}: the effect is not that of its seeds"
            assert stated_as(paired(y, here), change), f"{at}, {name}: another change"
            both, as_chosen = here.index.intersection(y.index), there["as_chosen"]
            assert stated_as(here[both], as_chosen), f"{at}, {name}: another effect as chosen"
            ends = change["interval"]
            sides = [side(test, x[both].mean()) if len(both) else 0 for x in (here, y)]
            words = {
                "turned": sides[0] * sides[1] < 0,
                "apart": ends is not None and not ends[0] <= 0 <= ends[1],
                "clear": all(leaves_out(test, each["interval"]) for each in (as_chosen, there)),
            }
            for key, word in words.items():
                assert word == there[key], f"{at}, {name}: {key} is {there[key]}, not {word}"
            low, high = ends or (np.nan, np.nan)
            line = [claim["id"], test["label"], test["effect"], name, there["effect"]]
            line += [change["effect"], low, high, change["seeds"]]
            page.append([*line, ", ".join(key for key, word in words.items() if word)])

elsewhere = pd.read_csv(folder / "sensitivity.csv")
for said in sensitivity["orders"]:  # of rows by their means over the seeds that both have
    for name, it in said["variations"].items():
        of = elsewhere[elsewhere["variation"] == name]
        of = of[(of["metric"] == said["metric"]) & (of["reading"] == said["reading"])]
        both = [
            pd.concat([values(row, said["metric"], said["reading"]), y], axis=1).dropna().mean()
            for row, y in of.set_index("seed").groupby("row")["value"]
        ]
        x, y = np.array([pair for pair in both if pair.notna().all()]).round(6).T
        tau = stats.kendalltau(x, y).statistic
        at = f"sensitivity.json, order of rows, {said['label']}, {name}"
        assert it["rows"] == len(x) and same(tau, it["tau"]), f"{at}: {tau}, not {it['tau']}"

display(HTML(f"<p>{escape(printed['sensitivity']['about'])}</p>"))
for text in printed["sensitivity"]["coverage"] + printed["sensitivity"]["orders"]:
    display(HTML(f"<p>{escape(text)}</p>"))
for said in printed["sensitivity"]["claims"]:
    display(HTML(f"<p><b>{escape(said['id'])}.</b> {escape(said['sentence'])}</p>"))
display(HTML(f"<p>{escape(printed['sensitivity']['idle'])}</p>"))
columns = ["claim", "test", "effect here", "scale", "effect there", "change", "low", "high"]
show(pd.DataFrame(page, columns=[*columns, "seeds", "what holds"]))
print(f"{len(page)} comparisons: all as sensitivity.json says")

# %% [markdown]
# ## Noise floor

# %% tags=["no-noise"]
display(HTML(f"<p>{escape(printed['noise']['about'])}</p>"))

# %% [markdown] tags=["noise"]
# A replicate is the same run with the same seed, trained again elsewhere. `noise.csv` holds each of
# its metrics beside ours. Over all pairs of a replicate: root mean square and largest difference.
# Two trainings of a row with different seeds differ by √2 times the standard deviation over seeds,
# the square root of the mean variance over the same rows. Likewise the contrasts that the claims
# test, where a replicate has a seed of all their rows: a contrast is linear in the numbers of its
# rows, so it moves by the contrast of their differences. Compared with `noise_floor.csv`.

# %% tags=["noise"]
MAIN = ["linear/accuracy", "few/accuracy", "knn/accuracy", "kmeans/ami", "codes/ami"]
numbers = ["metric", "value", "other", "difference", "seed_sd"]  # of which some are empty
exactly = {
    **{"dtype": {"replicate": str}, "float_precision": "round_trip"},
    **{"keep_default_na": False, "na_values": {name: [""] for name in numbers}},
}
pairs = pd.read_csv(folder / "noise.csv", **exactly).dropna(subset=["metric"])
stated = pd.read_csv(folder / "noise_floor.csv", **exactly)
here = metrics.set_index(["row", "metric", "reading", "seed"])["value"].to_dict()
for it in pairs.itertuples():
    at = f"noise.csv, {it.replicate}, {it.label}, seed {it.seed}, {it.metric}"
    measured_here = here.get((it.row, it.metric, it.reading, it.seed), np.nan)
    assert same(measured_here, it.value), f"{at}: {it.value}, but we measured {measured_here}"
    assert it.difference == it.other - it.value, f"{at}: difference is {it.other - it.value}"
    assert it.state != "identical" or it.difference == 0, f"{at}: not identical"

run_of = runs.drop_duplicates("row").set_index("row")["run"]


def contrast(test, numbers):
    """Of numbers that rows have by seed, as `measured` takes it of those in metrics.csv."""

    def difference(rows, against):
        each = [paired(numbers[a], numbers[b]) for a, b in zip(rows, against)]
        return pd.concat(each, axis=1).dropna().mean(axis=1)

    x = difference(test["rows"], test["against"])
    if test["kind"] == "interaction":
        x = paired(x, difference(test["control"], test["control_against"]))
    return x


contrasts = {}  # each once, of rows that the scale runs
for test in (test for claim in declared["claims"] for test in claim["tests"]):
    rows = [tuple(test[part]) for part in ("rows", "against", "control", "control_against")]
    kept = test["kind"] in ("difference", "differs", "equivalent", "interaction")
    kept = kept and (test["reading"], test["ceiling"]) == ("corrected", None)
    if kept and set(sum(rows, ())) <= set(declared["rows"]):
        contrasts.setdefault((test["metric"], *rows), test)

floor = []
for name in pairs["replicate"].unique():
    for metric in MAIN:
        of = pairs[(pairs["replicate"] == name) & (pairs["metric"] == metric)]
        of = of[of["reading"] == "corrected"]
        moves = {run: each.set_index("seed")["difference"] for run, each in of.groupby("run")}
        trained = of[of["state"].isin(["identical", "moved"])].drop_duplicates("run")

        ours = {row: values(row, metric, "corrected") for row in declared["rows"]}
        moved = {row: moves.get(run_of[row], pd.Series(dtype=float)) for row in ours}
        items = {"rows": [(moves[it.run], ours[it.row]) for it in trained.itertuples()]}
        items["contrasts"] = [
            (contrast(test, moved), contrast(test, ours))
            for (of_metric, *rows), test in contrasts.items()
            if of_metric == metric
            and set(run_of[list(sum(map(tuple, rows), ()))]) & set(trained["run"])
        ]
        for what, each in items.items():
            each = [(x, y) for x, y in each if len(x)]
            if each:
                all_moves = np.concatenate([x for x, _ in each])
                over_seeds = [y for _, y in each if len(y) > 1]
                sd = np.sqrt(np.mean([y.var(ddof=1) for y in over_seeds])) if over_seeds else np.nan
                line = [name, what, metric, len(all_moves), len(each)]
                line += [np.sqrt((all_moves**2).mean()), abs(all_moves).max(), len(over_seeds)]
                floor.append([*line, sum(map(len, over_seeds)), sd])
floor = pd.DataFrame(floor, columns=list(stated.columns))
assert len(floor) == len(stated), "noise_floor.csv has other lines"
for key in floor.columns:
    for it, a, b in zip(floor.itertuples(), floor[key], stated[key]):
        equal = a == b if isinstance(a, str) else same(a, b)
        at = f"noise floor, {it.replicate}, {it.metric}, {it.of}"
        assert equal, f"{at}: {key} is {a}, not {b}"
show(floor.assign(between_two_seeds=np.sqrt(2) * floor["seed_sd"]))
for said in printed["noise"]["read"]:
    display(HTML(f"<p><b>{escape(said['name'])}.</b> {escape(said['text'])}</p>"))
print(f"{len(pairs)} pairs and {len(floor)} lines: all equal to noise.csv and noise_floor.csv")

# %% [markdown]
# ## What is stated, what we assume

# %%
show(pd.DataFrame(declared["assumptions"], columns=["setting", "stated", "ours"]))

# %% [markdown]
# ## Provenance
# Every number above belongs to a row; the row's run is a folder of `results/runs/`, a seed a folder
# in it. Seeds that did not finish stand here with the reason.

# %%
show(runs.drop(columns="row"))
show(pd.DataFrame(printed["knobs"], columns=[f"protocol {printed['protocol']}", ""]))
