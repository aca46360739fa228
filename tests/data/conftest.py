"""Tiny data sets in the official layouts."""

import sys
from pathlib import Path

import pytest

from peregrine.data.sources import SOURCES

sys.path.append(str(Path(__file__).parent))  # tiny_raw.py


@pytest.fixture(scope="session")
def tinies():
    from tiny_raw import MAKERS

    return {name: make() for name, make in MAKERS.items()}


@pytest.fixture
def tiny(tinies, monkeypatch):
    """`tiny(NAME)`: that data set at the size of a test, also in the registry."""

    def get(name, base="http://127.0.0.1:9"):
        monkeypatch.setitem(SOURCES, name, tinies[name].at(base))
        return tinies[name]

    return get
