"""Sizes small enough for a test."""

import pytest

from peregrine.config.theory import Sizes

TINY = {
    "epsilon": 1e-8,
    "iterations": 100,
    "code_widths": [8, 16],
    "code_count": 32,
    "assignment_samples": 4,
    "assignment_codes": 64,
    "assignment_starts": 1,
    "large_starts": 1,
    "betas": [1.0, 2.0],
    "width": 16,
    "block": 2,
    "codes": [4, 8],
    "few_codes": [8, 16],
    "starts": 1,
    "picture": 4,
}


@pytest.fixture
def tiny():
    return lambda **changes: Sizes.model_validate(TINY | changes)
