"""What the fuzz tests share: how often, and how text and bytes are spoilt.

PEREGRINE_FUZZ=10000 python -m pytest tests/faults/test_fuzz_config.py
"""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from peregrine.errors import UserError

FEW = 300


def tries(few: int = FEW) -> settings:
    """The same examples each time; `few` of them, or as many as PEREGRINE_FUZZ says."""
    return settings(
        max_examples=int(os.environ.get("PEREGRINE_FUZZ") or few),
        deadline=None,
        derandomize="PEREGRINE_FUZZ" not in os.environ,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def refused(call, *arguments) -> str | None:
    """The one line of the UserError that a call ends in; None where it ends well."""
    try:
        call(*arguments)
    except UserError as error:
        assert str(error).strip() and "\n" not in str(error).strip(), repr(str(error))
        return str(error)
    return None


spoils = st.lists(
    st.tuples(
        st.sampled_from(("flip", "cut", "insert", "remove", "set", "zeros", "number")),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
        st.integers(1, 64),
    ),
    min_size=1,
    max_size=4,
)
"""What happens to a file: (kind, place as a share of its length, value, length)."""


def spoilt(data: bytes, how) -> bytes:
    out = bytearray(data)
    for kind, share, value, length in how:
        # Half of all places lie in the first 512 bytes, where headers are.
        reach = min(len(out), 512) if value % 2 else len(out)
        at = int(share * reach)
        if kind == "flip" and out:
            out[at] ^= 1 << value % 8
        elif kind == "cut":
            del out[at:]
        elif kind == "insert":
            out[at:at] = bytes([value]) * length
        elif kind == "remove":
            del out[at : at + length]
        elif kind == "set" and out:
            out[at] = value
        elif kind == "zeros":
            out[at : at + length] = bytes(len(out[at : at + length]))
        elif kind == "number":  # a size: the largest, or one that is far too large
            out[at : at + 4] = (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x10")[value % 3]
    return bytes(out)
