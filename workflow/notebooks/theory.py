# %%
import json
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML, display

# %% tags=["parameters"]
folder = "../../results/theory/demo"  # codes, assignments, embeddings, cosines .csv
declarations = "theory.json"  # limits declared and verdicts reported, beside this notebook

# %%
folder = Path(folder)
stated = json.loads(Path(declarations).read_text())
declared, reported, printed = (stated[key] for key in ("declared", "claims", "printed"))
names = ("codes", "assignments", "embeddings")
frames = {name: pd.read_csv(folder / f"{name}.csv") for name in names}
sizes = declared["sizes"]

title, paper, summary = (escape(printed[key]) for key in ("title", "paper", "summary"))
display(HTML(f"<h1>{title}</h1><p>On the theory of {paper}.</p><p>{summary}</p>"))

# %% [markdown]
# ## The two comparisons, from their formulas
# With n < c, compare one code for each sample and spreading over c/n private codes; every other
# code has mass epsilon. Below they are written out in numpy; the study put them through the loss
# that trains the networks. Both must agree.

# %%
n, c, eps = sizes["assignment_samples"], sizes["assignment_codes"], sizes["epsilon"]


def comparison(codes_per_sample):
    """(invariance, forward prior, reverse prior) where each sample is spread over so many codes."""
    k = codes_per_sample
    p = (1 - eps * (c - k)) / k
    entropy = -k * p * np.log(p) - (c - k) * eps * np.log(eps)
    used, unused = (p + (n - 1) * eps) / n, eps  # batch mean of a code, n k of them in use
    forward = -(n * k * np.log(used) + (c - n * k) * np.log(unused)) / c
    reverse = n * k * used * np.log(c * used) + (c - n * k) * unused * np.log(c * unused)
    return entropy, forward, reverse


found = frames["assignments"].query("c == @c and beta == 1 and stage == 'constructed'")
ours = {}
for start, k in (("one_hot", 1), ("spread", c // n)):
    entropy, forward, reverse = ours[start] = comparison(k)
    for prior, expected in (("forward", entropy + forward), ("reverse", entropy + reverse)):
        line = found.query("start == @start and prior == @prior and metric == 'loss'")
        assert abs(line["value"].item() - expected) < 1e-4, (start, prior)
        print(f"{start:8} {prior:8} {expected:.4f}")
(h1, m1, _), (h2, m2, _) = ours["one_hot"], ours["spread"]
same = found.query("metric == 'equal_at_beta'")["value"].item()
assert abs(same - (m1 - m2) / (h2 - h1)) < 1e-4
print(f"equal in the forward form at beta {same:.4f}")

# %% [markdown]
# ## Every statement, judged again
# A test takes lines of a file, reduces them to one number and holds it against the limits that
# were declared; a test without lines is not run at this scale. Where the number or the verdict
# differs from the report, an assertion stops this notebook.


# %%
def lines(test):
    frame = frames[test["file"]]
    frame = frame[frame["metric"] == test["metric"]]
    for column, wanted in test["where"].items():
        wanted = wanted if isinstance(wanted, list) else [wanted]
        starts = tuple(w[:-1] for w in wanted if isinstance(w, str) and w.endswith("*"))
        kept = frame[column].isin(wanted)
        if starts:
            kept |= frame[column].str.startswith(starts)
        frame = frame[kept]
    return frame["value"]


rows = []
for claim, told in zip(declared["claims"], reported, strict=True):
    verdicts = set()
    for test, result in zip(claim["tests"], told["tests"], strict=True):
        values = lines(test)
        if values.empty:
            assert result["verdict"] == "not run", test["label"]
            verdicts.add("not run")
            rows.append([claim["id"], test["label"], np.nan, np.nan, np.nan, "not run"])
            continue
        value = {"max": values.max, "min": values.min, "mean": values.mean}[test["reduce"]]()
        low = -np.inf if test["at_least"] is None else test["at_least"]
        high = np.inf if test["at_most"] is None else test["at_most"]
        verdict = "supported" if low <= value <= high else "contradicted"
        assert (len(values), verdict) == (result["lines"], result["verdict"]), test["label"]
        assert abs(value - result["value"]) <= 1e-9 + 1e-9 * abs(value), test["label"]
        verdicts.add(verdict)
        rows.append([claim["id"], test["label"], value, low, high, verdict])
    if verdicts == {"supported", "not run"}:
        verdicts = {"undecided"}
    elif len(verdicts) > 1:
        verdicts.discard("not run")
    assert told["verdict"] == (verdicts.pop() if len(verdicts) == 1 else "mixed"), claim["id"]
    rows.append([claim["id"], claim["statement"], np.nan, np.nan, np.nan, told["verdict"]])
judged = pd.DataFrame(rows, columns=["", "test", "value", "at least", "at most", "verdict"])
display(HTML(judged.to_html(index=False, na_rep="", float_format="{:.5g}".format)))
print(f"{len(rows) - len(reported)} tests judged again, all as reported")

# %% [markdown]
# ## What the minimiser reached from each start

# %%
at = frames["assignments"].query("c == @c and beta == 1")
wide = at.pivot_table(index=["prior", "start"], columns=["stage", "metric"], values="value")
display(HTML(wide.to_html(na_rep="", float_format="{:.5g}".format)))
many = frames["embeddings"].query("stage == 'blocks'")
wide = many.pivot_table(index=["c", "norm", "prior", "start"], columns="metric", values="value")
display(HTML(wide.to_html(na_rep="", float_format="{:.4g}".format)))
