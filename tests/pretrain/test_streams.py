"""Named streams of random numbers (peregrine.streams), on which every resume rests."""

import torch
from torch import nn

from peregrine.streams import generator, seeded_init, stream_seed


def test_a_seed_is_a_published_function_of_its_key():
    """First 8 bytes, little end first, of `printf 7/views/2/5 | sha256sum`, halved: for ever."""
    assert stream_seed(7, "views", 2, 5) == 0x4E645745A73457AB >> 1


def test_every_part_of_the_key_counts():
    keys = [
        (seed, stream, epoch, step)
        for seed in (0, 1, 11)
        for stream in ("order", "views", "init/backbone", "init/method")
        for epoch in (-1, 0, 1, 11)
        for step in (0, 1, 11)
    ]
    assert len({stream_seed(*key) for key in keys}) == len(keys)
    assert all(0 <= stream_seed(*key) < 2**63 for key in keys)
    draws = {float(torch.rand((), generator=generator(*key), dtype=torch.float64)) for key in keys}
    assert len(draws) == len(keys)


def test_equal_keys_give_equal_numbers():
    one, other = (torch.randn(5, generator=generator(3, "views", 1, 2)) for _ in range(2))
    assert (one == other).all()


def test_weights_are_drawn_from_the_stream_and_nothing_else_moves():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with seeded_init(5, "probe"):
        first = nn.Linear(3, 2).weight
    assert (torch.get_rng_state() == before).all()
    torch.manual_seed(2)
    with seeded_init(5, "probe"):
        assert (nn.Linear(3, 2).weight == first).all()
    with seeded_init(6, "probe"):
        assert (nn.Linear(3, 2).weight != first).all()
