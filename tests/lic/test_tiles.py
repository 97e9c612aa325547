"""Plans: tiles cover every level once, and a region's plan holds all that its synthesis touches."""

from hypothesis import given
from hypothesis import strategies as st

from lic.layers import tiles
from lic.layers.tiles import Area

SIDES = st.integers(1, 9000)
LEVELS = 6


@given(SIDES, SIDES)
def test_a_whole_plan_covers_each_level_once(height, width):
    levels = tiles.plan(height, width, LEVELS)
    assert [level.number for level in levels] == [6, 5, 4, 3, 2, 1]
    parts = set()
    for number, area, parted in levels:
        h, w = tiles.size(height, width, number)
        assert area == Area(0, 0, h, w)
        assert sum((t.bottom - t.top) * (t.right - t.left) for _, t in parted) == h * w
        assert all(t.top % 2 == 0 and t.left % 2 == 0 and t.bottom > t.top and t.right > t.left for _, t in parted)
        parts |= {tiles.part(height, width, number, index) for index, _ in parted}
    assert parts | {0} == set(range(tiles.parts(height, width)))


@given(st.data(), SIDES, SIDES, st.integers(0, 6))
def test_a_region_s_plan_holds_what_it_needs(data, height, width, halvings):
    h, w = tiles.size(height, width, halvings)
    top, left = data.draw(st.integers(0, h - 1)), data.draw(st.integers(0, w - 1))
    region = Area(top, left, data.draw(st.integers(top + 1, h)), data.draw(st.integers(left + 1, w)))
    needed = region
    for number, area, parted in reversed(tiles.plan(height, width, LEVELS, region, halvings)):
        h, w = tiles.size(height, width, number)
        assert area.top <= max(0, needed.top // 2 - 4)
        assert area.left <= max(0, needed.left // 2 - 4)
        assert area.bottom >= min(h, -(-needed.bottom // 2) + 4)
        assert area.right >= min(w, -(-needed.right // 2) + 4)
        assert area == Area(
            min(t.top for _, t in parted), min(t.left for _, t in parted),
            max(t.bottom for _, t in parted), max(t.right for _, t in parted),
        )  # fmt: skip
        needed = area
