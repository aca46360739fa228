"""A short version of kill.py: five kills, some minutes of both cores, so only where asked for."""

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import kill
import pytest


@pytest.mark.skipif("PEREGRINE_KILLS" not in os.environ, reason="PEREGRINE_KILLS is not set")
def test_five_kills_change_no_byte(tmp_path):
    trials, wrong = kill.run(5, 7, tmp_path)
    assert sum(trials.trials.values()) == 5
    assert not wrong, trials.table()
