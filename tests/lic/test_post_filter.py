"""The post-filter: it sees as far as it says, from wherever it is asked; files hold amounts; what trains it."""

import io

import numpy as np
import pytest
import torch

import lic
from lic import api, container
from lic.layers.amounts import unfolded
from lic.layers.integer import TrainableConv2d
from lic.layers.post_filter import ALIGNED, Decoded, PostFilter, Replay, remaining
from lic.layers.tiles import Area

STEP = torch.tensor([20 * 128])


def random_filter() -> PostFilter:
    torch.manual_seed(1)
    return PostFilter(TrainableConv2d, channels=8).requires_grad_(False)


@pytest.mark.parametrize("corner", [(0, 0), (64, 72), (96, 4)])
def test_a_part_is_filtered_as_in_the_whole_picture(corner):
    post_filter, (height, width) = random_filter(), (199, 203)
    picture = torch.randint(-1500, 1500, (1, 3, height, width), dtype=torch.int32)
    whole = unfolded(post_filter(picture, STEP))[..., :height, :width]
    assert whole.std() > 0.01
    everything = Area(0, 0, height, width)
    part = Area(*corner, corner[0] + 41, corner[1] + 37)
    around = part.around(post_filter.reach, ALIGNED, height, width)
    filtered = unfolded(post_filter(picture[around.within(everything)], STEP))
    assert torch.equal(filtered[part.within(around)], whole[part.within(everything)])


def test_a_file_holds_amounts_and_bad_ones_are_refused(photo):
    data = lic.encode(np.tile(photo, (3, 3, 1)), quality=85)
    with_amounts = lic.decode(data).pixels
    amounts = api.stream_sizes(io.BytesIO(data))[0]["amounts"]
    assert amounts > 2
    file = io.BytesIO(data)
    info = container.read_info(file)
    (frame,) = container.read_frames(file, info)
    assert frame.planes[0] == amounts
    usual = container.write(info, [container.Frame(b"\0" + frame.planes[1 + amounts :])])
    assert not np.array_equal(lic.decode(usual).pixels, with_amounts)
    for bad in (b"\x01\0", b"\x02\x11\x05", b"\x02\0\x40"):
        with pytest.raises(lic.FormatError, match="amounts"):
            lic.decode(container.write(info, [container.Frame(bad + frame.planes[1 + amounts :])]))


def test_replay_draws_pictures_with_their_errors():
    replay, generator = Replay(), torch.Generator().manual_seed(2)
    picture = torch.randint(0, 1000, (2, 3, 200, 220), dtype=torch.int32)
    replay.add(Decoded(picture, picture / 8, torch.tensor([100, 200])))
    drawn = replay.draw(generator)
    assert drawn.picture.shape == (8, 3, 192, 192)
    assert torch.equal(drawn.error, drawn.picture / 8)
    assert {*drawn.step.tolist()} == {100, 200}
    assert len({tuple(x[0, 0, :5].tolist()) for x in drawn.picture}) > 6


def test_what_remains_is_least_with_the_best_amounts():
    post_filter = random_filter()
    torch.manual_seed(4)
    picture = torch.randint(-1500, 1500, (2, 3, 64, 80), dtype=torch.int32)
    step = STEP.repeat(2)
    wanted = torch.tensor([0.5, -1.0, 0.25, 2.0]).view(4, 1, 1, 1)
    error = (unfolded(post_filter(picture, step)) * wanted).sum(1)
    before, plain, best = remaining(post_filter, Decoded(picture, error, step))
    assert bool((best < 0.01 * before).all())
    assert bool((best < plain).all())
