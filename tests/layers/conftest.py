import pytest

from sinelr_lightning.layers import select


@pytest.fixture
def thin_at_rank_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank-2 sines run thin also in layers so small that the formed way would be cheaper."""
    monkeypatch.setattr(select, "_OVERHEAD", select._OVERHEAD | {2: -(10**9)})
