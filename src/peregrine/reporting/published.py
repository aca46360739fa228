"""Numbers that a paper printed: config/published/<study>.csv, read and checked."""

import csv
import math
from pathlib import Path
from typing import NamedTuple

from peregrine.config.study import Study
from peregrine.errors import UserError
from peregrine.reporting.chance import TEST_SETS, random_nmi

UNITS = {"1": 1.0, "%": 0.01}
"""Unit of a published number -> factor to the metric's own unit (shares for accuracies)."""


class Published(NamedTuple):
    """A line of the file; an empty value is a cell that is known to exist without its number."""

    cell: str
    table: str
    row: str
    column: str
    metric: str
    unit: str
    decimals: int
    value: float | None
    sd: float | None
    n: int | None
    source: str
    remark: str
    codes: int | None = None
    test_set: str = ""

    @property
    def nmi(self) -> bool:
        """Whether it is an NMI, which says nothing without its chance level."""
        return self.metric.endswith("/nmi")

    @property
    def chance(self) -> float | None:
        """The NMI that uniform random codes, as many, give on the same test set; else None."""
        if not self.nmi or self.value is None or self.codes is None:
            return None
        return random_nmi(TEST_SETS[self.test_set], self.codes)

    @property
    def half_width(self) -> float:
        """Half of the last printed digit, in the metric's unit."""
        return 0.5 * 10.0**-self.decimals * UNITS[self.unit]

    def share(self, number: float | None) -> float | None:
        """A number of this cell in the metric's unit."""
        return None if number is None else number * UNITS[self.unit]


OPTIONAL = ("codes", "test_set")
"""Last columns of the file, which it has where it has an NMI: how many codes it is of, and on the
test images of which data set."""

Cells = dict[tuple[str, str, str], Published]
"""By (table, row, column)."""


def published_of(study: Study, config: Path) -> Cells:
    """What is published of a study: nothing where none of its tables names a published one."""
    if not any(table.published for table in study.tables):
        return {}
    return read_published(config / "published" / f"{study.name}.csv")


def read_published(path: Path) -> Cells:
    """All published cells of a study.

    Raises:
        UserError: a missing file, another header, a number that is none, a cell that stands twice,
            a unit that is unknown, no value and no remark that says why, or codes of a test set
            that is unknown.
    """
    out: Cells = {}
    names: set[str] = set()
    for number, line in enumerate(read_csv(path, Published._fields, OPTIONAL), start=2):
        where = f"{path}: line {number}"
        try:
            numbers = {
                "decimals": int(line["decimals"]),
                "value": _number(line["value"]),
                "sd": _number(line["sd"]),
                "n": int(line["n"]) if line["n"] else None,
                "codes": int(line["codes"]) if line.get("codes") else None,
            }
            _check_ranges(**numbers)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
        found = Published(**line | numbers)
        key = (found.table, found.row, found.column)
        if key in out or found.cell in names:
            raise UserError(f"{where}: cell '{found.cell}' stands twice")
        if found.unit not in UNITS:
            raise UserError(f"{where}: unit '{found.unit}' is not one of {', '.join(UNITS)}")
        if not found.source or (found.value is None and not found.remark):
            raise UserError(f"{where}: a source is needed, and a value or a remark on why not")
        if found.codes is not None and found.test_set not in TEST_SETS:
            raise UserError(
                f"{where}: codes need a test_set, one of {', '.join(TEST_SETS)},"
                f" not '{found.test_set}'"
            )
        out[key] = found
        names.add(found.cell)
    return out


def _check_ranges(
    decimals: int, value: float | None, sd: float | None, n: int | None, codes: int | None
) -> None:
    if not 0 <= decimals <= 6:
        raise ValueError(f"decimals {decimals} is not between 0 and 6")
    if sd is not None and sd < 0:
        raise ValueError(f"sd {sd:g} is negative")
    if n is not None and n < 1:
        raise ValueError(f"n {n} is less than one run")
    if codes is not None and codes < 1:
        raise ValueError(f"codes {codes} is less than one")


def _number(text: str) -> float | None:
    if not text:
        return None
    if not math.isfinite(float(text)):
        raise ValueError(f"'{text}' is not a finite number")
    return float(text)


def read_csv(
    path: Path, header: tuple[str, ...], optional: tuple[str, ...] = ()
) -> list[dict[str, str]]:
    """Lines of a CSV file that must have the columns of `header`, all or all but the `optional`.

    Raises:
        UserError: missing, unreadable, other columns, or a line of another length.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = tuple(reader.fieldnames or ())
            lines = list(reader)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    least = header[: len(header) - len(optional)]
    if columns not in (header, least):
        more = f", with or without {','.join(optional)}" if optional else ""
        raise UserError(f"{path}: the first line must be {','.join(least)}{more}")
    for number, line in enumerate(lines, start=2):
        if None in line or None in line.values():
            raise UserError(f"{path}: line {number} has not {len(columns)} cells; quote commas")
    return lines
