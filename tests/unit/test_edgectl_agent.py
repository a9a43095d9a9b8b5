"""`edgectl agent`: shares as people write them, and numbers that no request can carry."""

import pytest

from edgectl.errors import UsageError
from edgectl.verbs.agent import _whole, permille


@pytest.mark.parametrize(
    ("text", "share"),
    [("1%", 10), ("0.1%", 1), (" 16.1% ", 161), ("33.3", 333), ("100%", 1000), ("0%", 0)],
)
def test_a_share_in_thousandths(text: str, share: int) -> None:
    assert permille(text, "--waves") == share


def test_every_tenth_of_a_percent_is_one() -> None:
    assert [permille(f"{n / 10}%", "--waves") for n in range(1001)] == list(range(1001))


@pytest.mark.parametrize("text", ["", "%", "x", "nan", "inf", "-1%", "101%", "0.05%", "1%2%"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(UsageError, match="--waves"):
        permille(text, "--waves")


@pytest.mark.parametrize(
    ("number", "whole"), [(600.0, 600), (1e18, 2**31 - 1), (-1, -1), (float("inf"), 2**31 - 1)]
)
def test_what_does_not_fit_is_left_to_the_servers_limit(number: float, whole: int) -> None:
    assert _whole(number) == whole
