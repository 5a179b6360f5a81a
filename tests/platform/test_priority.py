"""The header that marks a request as background work."""

import pytest

from ml.platform.priority import BACKGROUND, is_background


@pytest.mark.parametrize("header", [BACKGROUND, "u=7, i", "i,u=7", " i=?0 ,\tu=7;x=1", "u=3, u=7"])
def test_urgency_7_is_background_work(header: str) -> None:
    assert is_background(header)


@pytest.mark.parametrize("header", ["", "u=3", "i", "u=77", "u=7, u=1", "au=7", "u", "u=", "u =7", "7", "U=7", "x;u=7"])
def test_any_other_header_is_not(header: str) -> None:
    assert not is_background(header)
