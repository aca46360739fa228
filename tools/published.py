"""Make the snapshots in reports/published/ from their bundles (`make published`).

Each folder reports/published/SCALE/bundles/ holds the bundles of a scale; all else beside it is
made of them. `--check` writes nothing and fails, with the list, where a file is not what the
bundles, config/ and the code give.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from peregrine.errors import UserError
from peregrine.reporting import snapshots

ROOT = Path(__file__).parents[1]


def one(root: Path, scale: str, check: bool, whole: Path | None) -> int:
    """Make or compare the snapshot of a scale; 1 where it is not as it should be."""
    folder = root / "reports" / "published" / scale
    with tempfile.TemporaryDirectory() as scratch:
        everything = whole and whole / scale
        made = snapshots.make(root / "config", folder, Path(scratch), everything)
        lines = snapshots.differences(folder, made)
        if not check:
            lines = snapshots.publish(folder, made)
    print("\n  ".join([f"{scale}: {_summary(len(lines), check)}", *lines]))
    if check and lines:
        print(f"type `make published SCALE={scale}`, look at what it changes and commit it")
    if not check:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"{scale}: {size / 1e6:.1f} MB with its bundles")
    return int(check and bool(lines))


def _summary(count: int, check: bool) -> str:
    if not count:
        return "every file is what its bundles, config/ and the code give"
    files = "1 file" if count == 1 else f"{count} files"
    return f"{files} not what bundles, config/ and the code give" if check else f"{files} changed"


def main(words: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Exit code: 0 where all is well, 1 where --check found a difference, 2 for a wrong input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", help="a folder of reports/published/; all where not given")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument(
        "--whole", type=Path, help="a folder that also gets notebooks, metrics.csv, SVG figures"
    )
    options = parser.parse_args(words)
    if options.whole and options.whole.exists() and not options.whole.is_dir():
        print(f"published: error: --whole {options.whole} is no folder", file=sys.stderr)
        return 2
    names = [options.scale] if options.scale else snapshots.scales(root / "reports" / "published")
    if not names:
        print("reports/published/ has no bundles yet: nothing to make or to compare")
    try:
        return max([one(root, name, options.check, options.whole) for name in names], default=0)
    except UserError as error:
        print(f"published: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
