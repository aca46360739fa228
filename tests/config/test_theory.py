"""The theory study: its file, its sizes at a scale, and what is refused."""

import json
from pathlib import Path

import pytest
import yaml

from peregrine.config.load import load
from peregrine.config.models import Scale
from peregrine.config.theory import load_theory
from peregrine.errors import UserError

CONFIG = Path(__file__).parents[2] / "config"


def scale(**theory):
    return Scale(name="any", description="", seeds=(0,), theory=theory)


@pytest.fixture
def study(tmp_path):
    """`study(change)`: the file with a change made to its mapping, in a folder of its own."""
    data = yaml.safe_load((CONFIG / "theory.yaml").read_text())

    def write(change):
        change(data)
        (tmp_path / "theory.yaml").write_text(json.dumps(data))
        return tmp_path

    return write


def test_a_scale_is_laid_over_the_sizes():
    full = load_theory(CONFIG, scale())
    small = load_theory(CONFIG, scale(codes=[16], starts=1))
    assert full.sizes.assignment_codes == small.sizes.assignment_codes == 16384
    assert (small.sizes.codes, small.sizes.starts) == ((16,), 1)
    assert small.claims == full.claims
    assert load_theory(CONFIG, load(CONFIG, scale="demo").scale).sizes.large_starts == 0


@pytest.mark.parametrize(
    ("theory", "words"),
    [
        ({"betas": [2.0]}, "betas must hold 1"),
        ({"few_codes": [64]}, "64 codes are no multiple of 64 samples, or not twice"),
        ({"few_codes": [200]}, "200 codes are no multiple"),
        ({"picture": 20}, "picture 20 is none of codes"),
        ({"epsilon": 1e-4}, "too large for 16384 codes"),
        ({"start": 1}, "unknown key 'sizes.start'; did you mean 'starts'?"),
    ],
)
def test_sizes_that_cannot_be_are_one_line(theory, words):
    with pytest.raises(UserError, match=r"theory.yaml, with the scale any: ") as caught:
        load_theory(CONFIG, scale(**theory))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_test_without_a_limit_and_a_claim_that_stands_twice_are_refused(study):
    def no_limit(data):
        data["claims"][0]["tests"][0].pop("at_most")

    def twice(data):
        data["claims"].append(data["claims"][1])
        data["claims"][0]["tests"][0]["at_most"] = 1

    with pytest.raises(UserError, match="needs at_most, at_least or both"):
        load_theory(study(no_limit), scale())
    with pytest.raises(UserError, match="id of claims 'T2' stands twice"):
        load_theory(study(twice), scale())
