"""`lic compare`: files of equal size, a page that needs nothing else and whose slider wipes, and a sheet."""

import argparse
import io
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lic.evaluation import compare
from lic.evaluation.peers import Peer
from tests.lic.conftest import natural

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def run(picture: Path, *arguments: object) -> int:
    """With JPEG and WebP and without models, unless others are asked for."""
    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)
    return compare.main(parser.parse_args([str(picture), "--models", "--peers", "jpeg", "webp", *map(str, arguments)]))


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("compare") / 'a & "b".png'
    Image.fromarray(natural(240, 320, 3)).save(path)
    return path


@pytest.fixture(scope="module")
def out(picture) -> Path:
    out = picture.parent / "new" / "folder" / "compare"
    assert run(picture, "--bpp", 0.5, "--out", out) == 0
    return out


def sizes(page: str) -> list[int]:
    return [int(size.replace(",", "")) for size in re.findall(r"<td>([\d,]+)</td><td>[+-]", page)]


def test_files_are_of_the_size_asked_for(out):
    target = 240 * 320 / 2 / 8
    assert sizes(Path(f"{out}.html").read_text("utf-8")) == [pytest.approx(target, rel=0.03)] * 2


def test_first_model_sets_the_size(picture, tmp_path, monkeypatch):
    model = Peer("fake", "fake", "WEBP", "webp", ({"quality": 10},), model="fake")
    monkeypatch.setattr(compare, "model_peers", lambda name: [model])
    file = io.BytesIO()
    Image.open(picture).save(file, "WEBP", quality=60)
    assert run(picture, "--models", "fake", "--quality", 60, "--out", tmp_path / "x") == 0
    page = (tmp_path / "x.html").read_text("utf-8")
    assert sizes(page)[0] == file.tell()
    assert sizes(page) == [pytest.approx(file.tell(), rel=0.05)] * 3


def test_search_finds_the_nearest_size_that_a_codec_has(photo):
    webp = next(peer for peer in compare.LOSSY if peer.name == "webp")
    every = [compare.encode(webp, photo, None, quality, []).size for quality in range(100)]
    for target in (1, 1000, 1500, 3000, 10**9):
        found = compare.encode(webp, photo, target, 0, [])
        assert abs(found.size - target) == min(abs(size - target) for size in every)


def test_page_needs_nothing_else(out):
    page = Path(f"{out}.html").read_text("utf-8")
    assert "<title>a &amp; &quot;b&quot;.png, compared</title>" in page
    sources = re.findall(r'(?:src|href)="(.{22})', page)
    views = page.count("<h2>Whole") + page.count("<h2>Detail")
    assert views >= 2
    assert sources == ["data:image/png;base64,"] * views * 5  # original, JPEG, WebP, and the errors of two
    assert not re.search(r"https?:|url\(|@import|fetch\(", page)
    for metric in ("PSNR", "MS-SSIM", "SSIMULACRA 2"):
        assert metric in page


def test_sheet_opens(out):
    with Image.open(f"{out}.png") as sheet:
        sheet.load()
        assert sheet.width > 3 * 2 * compare.DETAIL[0]


def test_details_are_where_pictures_differ():
    pictures = np.zeros((2, 600, 800, 3), np.uint8)
    pictures[1, 400:440, 500:540] = 200
    pictures[1, 40:50, 40:50] = 100
    for box, inside in zip(compare._details(list(pictures)), [(500, 400, 540, 440), (40, 40, 50, 50)], strict=True):
        both = np.stack([box, inside])
        assert (both[:, :2].max(0) == inside[:2]).all()
        assert (both[:, 2:].min(0) == inside[2:]).all()


@pytest.mark.parametrize("size", [(30, 40), (1, 1), (1, 300)])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_tiny_pictures_and_every_number_of_channels(tmp_path, size, channels):
    Image.fromarray(natural(*size, channels)).save(tmp_path / "x.png")
    assert run(tmp_path / "x.png", "--out", tmp_path / "out") == 0
    page = (tmp_path / "out.html").read_text("utf-8")
    assert "PSNR" in page
    assert "MS-SSIM" not in page


def test_rotated_picture_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn
    Image.fromarray(natural(30, 40, 3)).save(tmp_path / "x.jpg", exif=exif)
    assert compare._read(tmp_path / "x.jpg").shape == (40, 30, 3)


@pytest.mark.parametrize("name", ["text.png", "absent.png", "deep.png", "out.png"])
def test_what_cannot_be_compared_is_refused(tmp_path, capsys, name):
    (tmp_path / "text.png").write_text("not a picture")
    Image.fromarray(natural(30, 40, 1, np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(natural(30, 40, 3)).save(tmp_path / "out.png")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert run(tmp_path / name, "--out", tmp_path / "out") == 1
    assert name in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_absent_plugin_is_skipped_and_nothing_left_is_an_error(picture, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Peer, "missing", lambda peer: "it is not installed" if peer.name == "webp" else None)
    assert run(picture, "--out", tmp_path / "out") == 0
    assert "WebP skipped: it is not installed" in capsys.readouterr().out
    assert run(picture, "--peers", "webp", "--out", tmp_path / "none") == 1
    assert not (tmp_path / "none.html").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_slider_wipes(out, tmp_path):
    def screenshot(wipe: int) -> np.ndarray:
        address = f"{Path(f'{out}.html').as_uri()}#left=original&right=jpeg&view=whole+picture&wipe={wipe}"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=800,700", "--virtual-time-budget=5000"]
        options.append("--run-all-compositor-stages-before-draw")  # or a busy machine's picture may be half drawn
        target = tmp_path / f"{wipe}.png"
        subprocess.run([CHROMIUM, *options, f"--screenshot={target}", address], check=True, capture_output=True)
        return np.array(Image.open(target).convert("RGB"))

    changed = np.flatnonzero((screenshot(20) != screenshot(80)).any((0, 2)))
    assert 0.6 * 320 <= np.ptp(changed) <= 0.6 * 320 + 50  # of the picture's 320 columns, and the handle
    assert len(changed) > 0.55 * 320
