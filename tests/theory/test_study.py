"""The step: files, sums, the same bytes twice."""

import csv
import json

from peregrine.files import read_json, sha256
from peregrine.theory.study import DIGITS, HEADERS, theory


def test_files_sums_and_equal_bytes(tiny, tmp_path):
    sizes = tiny(codes=[4], few_codes=[8], betas=[1.0])
    first, second = (theory(sizes, tmp_path / name) for name in ("first", "second"))
    record = read_json(first / "theory.json")
    assert set(record["files"]) == {f"{name}.csv" for name in HEADERS}
    for name, checksum in record["files"].items():
        assert sha256(first / name) == checksum == sha256(second / name)
    assert record["sizes"] == json.loads(sizes.model_dump_json())
    for name, header in HEADERS.items():
        with (first / f"{name}.csv").open(newline="") as stream:
            lines = list(csv.reader(stream))
        assert tuple(lines[0]) == header
        assert len(lines) > 10
        for line in lines[1:]:
            digits = line[-1].lower().split("e")[0].lstrip("-0.").replace(".", "")
            assert len(digits.rstrip("0")) <= DIGITS
