"""Seeds: functions of what they are for."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from semievol.seeds import seed_of


def test_seeds_are_the_same_in_every_process_and_version() -> None:
    assert seed_of(0, "row", 1, 2) == 8697408904886439004


@given(st.lists(st.one_of(st.text(), st.integers()), min_size=1, max_size=5))
def test_a_seed_fits_a_signed_64_bit_column(parts: list[str | int]) -> None:
    assert 0 <= seed_of(*parts) < 2**63


def test_every_part_counts() -> None:
    collaborators: tuple[int | str, ...] = (0, 1, "examples-1")
    parts = list(product((0, 1), ("a", "b"), collaborators, (1, 2, 11)))
    assert len({seed_of(*one) for one in parts}) == len(parts)
