"""Random numbers as pure functions of what they are for."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.randomness import combine, derive, mix, uniform

words = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(words, min_size=1, max_size=20), words)
def test_numpy_and_torch_agree_to_the_bit(keys: list[int], value: int) -> None:
    array, tensor = np.array(keys), torch.tensor(keys)
    assert mix(tensor).tolist() == mix(array).tolist()
    assert combine(tensor, 3).tolist() == combine(array, 3).tolist()
    assert combine(tensor, torch.full_like(tensor, value)).tolist() == (
        combine(array, np.full_like(array, value)).tolist()
    )
    assert torch.equal(uniform(tensor, 5), torch.from_numpy(uniform(array, 5)))


def test_mix_is_splitmix64() -> None:
    """The first outputs of SplitMix64 from the state 0, from its reference implementation."""
    golden = 0x9E3779B97F4A7C15
    states = np.array([golden, 2 * golden % 2**64, 3 * golden % 2**64], np.uint64).view(np.int64)
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert mix(states).view(np.uint64).tolist() == expected


def test_the_numbers_are_pinned() -> None:
    """Another number would be another crop, and a resumed run another run."""
    assert derive(0) == 0
    assert derive(0, 1, 2) == 2768175346671459840
    assert derive(5, 3) == -1210056179721199345
    assert derive(-1, 3) == 8221817183302629875
    expected = [[0.24992491805360317, 0.8298344549027435, 0.5051807081051797]]
    assert uniform(np.array([derive(5, 3)]), 3).tolist() == expected


@given(st.lists(words, min_size=1, max_size=20), st.integers(1, 30))
def test_uniform_is_in_the_unit_interval(keys: list[int], count: int) -> None:
    drawn = uniform(np.array(keys), count)
    assert drawn.shape == (len(keys), count)
    assert drawn.dtype == np.float64
    assert np.all((drawn >= 0) & (drawn < 1))


def test_the_shape_of_the_keys_is_kept() -> None:
    assert uniform(torch.zeros(2, 3, dtype=torch.int64), 4).shape == (2, 3, 4)
    assert uniform(torch.zeros(2, dtype=torch.int64), 0).shape == (2, 0)


@pytest.mark.parametrize("purpose", [1, 2, 3])
def test_numbers_of_neighbouring_keys_are_uniform_and_independent(purpose: int) -> None:
    keys = combine(np.arange(20_000), purpose)
    drawn = uniform(keys, 4)
    histogram, _ = np.histogram(drawn, bins=100, range=(0, 1))
    chi_squared = float(((histogram - 800.0) ** 2 / 800).sum())
    assert 55 < chi_squared < 155  # 99 degrees of freedom: 1 in 1,000 on either side
    correlation = np.corrcoef(np.concatenate([drawn[:-1].T, drawn[1:].T]))
    assert np.abs(correlation - np.eye(8)).max() < 0.035  # 5 deviations


def test_each_number_matters_to_the_key() -> None:
    keys = {derive(*values) for values in [(0,), (0, 0), (0, 0, 0), (0, 1), (1, 0), (0, 0, 1)]}
    assert len(keys) == 6


def test_a_seed_is_taken_modulo_64_bits() -> None:
    assert derive(2**64 + 5, 1) == derive(5, 1)
    assert derive(-1) == derive(2**64 - 1) == -1
