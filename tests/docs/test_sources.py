"""Citations such as "falcon.md, section 3" resolve to a heading of docs/sources."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "docs/sources"
CITED = re.compile(
    r"(?<![\w/.-])([\w-]+\.md)(?:\]\([^)]*\))?, (?:sections? )?(\d+(?:(?:, | and )\d+)*)"
)
"""A Markdown file without a folder and its sections; the words "section" may be missing."""
NAMED = re.compile(r"(?<![\w/.-])([\w-]+\.md)\b")
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
TEXT = {".py", ".yaml", ".yml", ".smk", ".md", ".toml", ".csv", ""}


def tracked() -> list[Path]:
    """Text files of the repository, those not yet committed included, without what is generated."""
    asked = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no git repository: the tree's own files cannot be told from others")
    found = [ROOT / line for line in done.stdout.splitlines() if not line.startswith("reports/")]
    return [path for path in found if path.suffix in TEXT and path.is_file()]


def joined(text: str) -> str:
    """`text` in one line: a citation may be broken, in a comment too."""
    return re.sub(r"\s+(?:# )?", " ", text)


def citations(text: str) -> list[tuple[str, int]]:
    """(file, section) of every citation."""
    return [
        (name, int(section))
        for name, sections in CITED.findall(joined(text))
        for section in re.findall(r"\d+", sections)
    ]


def headings(text: str) -> list[int]:
    """Numbers of the headings "## N. Title", in their order."""
    return [int(number) for number in re.findall(r"^## (\d+)\. \S", text, re.MULTILINE)]


def known() -> dict[str, list[int]]:
    return {path.name: headings(path.read_text(encoding="utf-8")) for path in SOURCES.glob("*.md")}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Settings: falcon.md, section 3.", [("falcon.md", 3)]),
        ("    # (falcon.md,\n    # section 3): SwAV", [("falcon.md", 3)]),
        ("optimum (falcon.md, 1).", [("falcon.md", 1)]),
        ("gone.md, sections 1 and 3; f = 128", [("gone.md", 1), ("gone.md", 3)]),
        ("falcon.md, sections 1, 2 and 4", [("falcon.md", k) for k in (1, 2, 4)]),
        ("[falcon.md](sources/falcon.md), section 2", [("falcon.md", 2)]),
        ("arXiv 2103.10994, section 3", []),
        ("docs/sources/falcon.md is there", []),
    ],
)
def test_what_counts_as_a_citation(text, expected):
    assert citations(text) == expected


def test_headings_are_numbered_without_gaps():
    assert headings("## 1. One\n### 2. No\n## 2. Two\n## Marks\n") == [1, 2]
    sources = known()
    assert set(sources) == {"falcon.md", "feature-augmentation.md"}
    for name, numbers in sources.items():
        assert numbers == list(range(1, len(numbers) + 1)) and numbers, name


def test_every_citation_resolves():
    sources, seen = known(), 0
    for path in tracked():
        if path == Path(__file__):
            continue
        for name, section in citations(path.read_text(encoding="utf-8")):
            assert name in sources, f"{path.relative_to(ROOT)} cites {name}: not in docs/sources"
            assert section in sources[name], f"{path.relative_to(ROOT)}: {name} has no {section}"
            seen += 1
    assert seen >= 50  # 54 lines of code and configuration had one when this was written


def test_every_guide_that_is_named_is_there():
    """A bare name, as comments and docstrings have it, is that of some Markdown file here.

    Tests are left out: they make files of their own.
    """
    files = tracked()
    there = {path.name for path in files if path.suffix == ".md"}
    for path in files:
        if path.suffix in {".py", ".yaml", ".smk"} and ROOT / "tests" not in path.parents:
            missing = set(NAMED.findall(path.read_text(encoding="utf-8"))) - there
            assert not missing, f"{path.relative_to(ROOT)} names {sorted(missing)}: not there"


def test_links_of_the_sources_lead_somewhere():
    for path in SOURCES.glob("*.md"):
        targets = [target for target, _ in LINK.findall(path.read_text(encoding="utf-8"))]
        local = [target for target in targets if not target.startswith("https://")]
        assert len(local) >= 5, path.name
        for target in local:
            assert (path.parent / target).is_file(), f"{path.name} links to {target}"


def test_no_decision_stands_twice():
    text = (ROOT / "docs/decisions.md").read_text(encoding="utf-8")
    decisions = re.findall(r"^\*\*(.*?)\*\*", text, re.MULTILINE | re.DOTALL)
    assert len(decisions) > 50
    assert [name for name in decisions if decisions.count(name) > 1] == []
