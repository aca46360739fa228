"""Fuzzing that is guided by coverage, where atheris installs (`pip install atheris`; not locked).

    python tests/faults/guided.py tensors -runs=20000
    python tests/faults/guided.py list            # the readers

Beside the tests here, which change what is valid, this one looks for inputs that reach new lines
of the readers. Whatever is no UserError is a finding, at which atheris stops and which it prints.
"""

import sys
import tempfile
from pathlib import Path

import atheris
import numpy as np

with atheris.instrument_imports(include=["peregrine"]):
    from peregrine import files
    from peregrine.config import load as loader
    from peregrine.config.study import Study
    from peregrine.errors import UserError

PLACE = Path(tempfile.mkdtemp())


def of_file(read, data: bytes) -> None:
    path = PLACE / "input"
    path.write_bytes(data)
    read(path)


def study(data: bytes) -> None:
    of_file(lambda path: loader.validate(Study, loader.read_yaml(path), "study"), data)


def tensors(data: bytes) -> None:
    of_file(files.read_tensors, data)
    of_file(files.map_tensors, data)


READERS = {
    "tensors": tensors,
    "records": lambda data: of_file(files.read_json, data),
    "yaml": lambda data: of_file(loader.read_yaml, data),
    "study": study,
}


def seeds() -> dict[str, bytes]:
    """One valid input of each reader, from which atheris starts."""
    path = PLACE / "seed"
    files.write_tensors(path, {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(2)}, name="some")
    tensors_ = path.read_bytes()
    files.write_json(path, {"run": "a", "seed": 1, "values": [0.5, None, True]})
    shipped = Path(__file__).parents[2] / "config"
    text = (shipped / "scales/demo.yaml").read_bytes()
    whole = (shipped / "studies/falcon.yaml").read_bytes()[:4000]
    return {"tensors": tensors_, "records": path.read_bytes(), "yaml": text, "study": whole}


def main() -> None:
    name, *options = sys.argv[1:] or ["list"]
    if name not in READERS:
        sys.exit(" ".join(READERS))
    corpus = PLACE / "corpus"
    corpus.mkdir()
    (corpus / name).write_bytes(seeds()[name])

    def one(data: bytes) -> None:
        try:
            READERS[name](data)
        except UserError as error:
            assert "\n" not in str(error).strip(), repr(str(error))

    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
