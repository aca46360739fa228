"""Devices by name, threads, precision."""

import pytest
import torch

from peregrine.errors import UserError
from peregrine.pretrain.device import autocast, circumstances, pick_device


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:-1", "", "mps:0", "cpu:0", "cuda:999"])
def test_a_device_that_is_not_there_is_one_line(name):
    with pytest.raises(UserError) as error:
        pick_device(name)
    assert f"'{name}'" in str(error.value)
    assert "\n" not in str(error.value)


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("precision", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_precision_is_that_of_the_run(precision, expected):
    x = torch.ones(2, 2)
    with autocast(torch.device("cpu"), precision):
        assert (x @ x).dtype == expected
    assert (x @ x).dtype == torch.float32


def test_circumstances_name_what_may_change_last_bits():
    facts = circumstances(torch.device("cpu"))
    assert facts["threads"] == torch.get_num_threads()
    assert facts["torch"] == torch.__version__
    assert facts["device"].startswith("cpu ")
    assert {"python", "platform"} <= set(facts)
