"""Large copies of a training process go past the caches, unless somebody has chosen otherwise."""

import pytest

from holdfast_agent.tunables import NAME, SETTING, with_large_copies


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, f"{SETTING}=0x200000"),
        ({NAME: "glibc.malloc.check=1"}, f"glibc.malloc.check=1:{SETTING}=0x200000"),
        ({NAME: f"{SETTING}=0x10000000"}, f"{SETTING}=0x10000000"),
    ],
)
def test_the_setting_is_added_and_never_changed(given, found):
    assert with_large_copies(given | {"A": "b"}) == {"A": "b", NAME: found}
