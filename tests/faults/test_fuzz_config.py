"""The shipped configuration with anything changed in it: it loads, or one line says why not."""

import copy
from pathlib import Path

import pytest
from fuzz import refused, spoils, spoilt, tries
from hypothesis import event, given
from hypothesis import strategies as st

from peregrine.config import load as loader
from peregrine.config import theory
from peregrine.config.detection import DetectionFile
from peregrine.config.resources import needs
from peregrine.reporting.published import published_of

CONFIG = Path(__file__).parents[2] / "config"
FILES = tuple(sorted(str(path.relative_to(CONFIG)) for path in CONFIG.rglob("*.yaml")))
CONTENTS = {name: loader.read_yaml(CONFIG / name) for name in FILES}
WORDS = sorted({word for data in CONTENTS.values() for word in data}) + ["falcon", "digits", "name"]

odd = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 2, 10**9, 2**63, -(10**30), 1e-300, 1e308]),
    st.sampled_from([float("nan"), float("inf"), "", " ", "a\nb", "../../x", "/", "\0", "\ud800"]),
    st.sampled_from(WORDS),
    st.text(max_size=8),
    st.lists(st.integers(-2, 3) | st.text(max_size=3), max_size=3),
    st.dictionaries(st.sampled_from(WORDS) | st.integers(0, 2), st.integers(-1, 2), max_size=2),
)


@st.composite
def changes(draw):
    """(file, its content with one to three nodes changed)."""
    name = draw(st.sampled_from(FILES))
    data = copy.deepcopy(CONTENTS[name])
    for _ in range(draw(st.integers(1, 3))):
        change(draw, data)
    return name, data


def change(draw, here):
    """Walk down some steps, then replace, remove, rename or double what is there."""
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        if not keys:
            return
        key = keys[draw(st.integers(0, len(keys) - 1))]
        if isinstance(here[key], dict | list) and draw(st.integers(0, 5)):
            here = here[key]
            continue
        kind = draw(st.sampled_from(("replace", "replace", "remove", "rename", "double", "wrap")))
        if kind == "replace":
            here[key] = draw(odd)
        elif kind == "wrap":
            here[key] = draw(st.sampled_from(([here[key]], {"name": here[key]})))
        elif kind == "remove":
            del here[key]
        elif isinstance(here, list):
            here.insert(0, copy.deepcopy(here[key]))
        else:
            new = draw(st.sampled_from(WORDS) | st.text(max_size=5) | st.integers(0, 3))
            value = here.pop(key) if kind == "rename" else copy.deepcopy(here[key])
            here[new] = value
        return


def everything(name: str) -> None:
    """What planning reads, at the scale of a changed file and else at the smallest."""
    folder, _, file = name.rpartition("/")
    scale = file.removesuffix(".yaml") if folder == "scales" else None
    project = loader.load(CONFIG, scale=scale)
    theory.load_theory(CONFIG, project.scale)
    for study in project.studies.values():
        published_of(study, CONFIG)
    path = CONFIG / "detection.yaml"
    loader.validate(DetectionFile, loader.read_yaml(path), str(path))
    for run in project.runs().values():
        needs("pretrain", run)


@tries()
@given(changes())
def test_a_changed_configuration_loads_or_is_refused(changed):
    name, data = changed

    def read(path):
        """The real file, whose reading is tested below, or the changed one."""
        return copy.deepcopy(
            data if path == CONFIG / name else CONTENTS[str(path.relative_to(CONFIG))]
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "read_yaml", lambda path: read(path) if known(path) else READ(path))
        patch.setattr(theory, "read_yaml", loader.read_yaml, raising=False)
        event("refused" if refused(everything, name) else "loads")


READ = loader.read_yaml


def known(path: Path) -> bool:
    return path.is_relative_to(CONFIG) and str(path.relative_to(CONFIG)) in CONTENTS


@tries()
@given(st.sampled_from(FILES), st.floats(0, 1), spoils)
def test_spoilt_yaml_is_read_or_refused(tmp_path_factory, name, share, how):
    """A piece of 2 kB, since YAML takes its time."""
    whole = (CONFIG / name).read_bytes()
    start = int(share * max(len(whole) - 2000, 0))
    path = tmp_path_factory.getbasetemp() / "spoilt.yaml"
    path.write_bytes(spoilt(whole[start : start + 2000], how))
    refused(loader.read_yaml, path)
    refused(loader.read_study, path)
