"""`lic bench`: BD-rates of published curves, honest sizes, a cache that only measures what changed, a report."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lic
from lic import cli
from lic.evaluation import bench, metrics, peers
from lic.evaluation.bjontegaard import bd_rate
from tests.lic.conftest import natural

FEW = ({"quality": 20}, {"quality": 80})
JPEG = peers.Peer("jpeg", "JPEG", "JPEG", "jpg", FEW)
WEBP = peers.Peer("webp", "WebP", "WEBP", "webp", FEW)
ABSENT = peers.Peer("absent", "Absent", "X", "no-such-package", FEW, plugin="no_such_module")


@pytest.mark.parametrize(
    ("curve", "expected"), [("hyperprior (Ballé 2018)", 30.5), ("ELIC (He 2022)", -7.0), ("VVC intra (VTM)", 0.0)]
)
def test_bd_rates_of_published_curves(curve, expected):
    curves = bench._published()
    subject, reference = (curves[name] for name in (curve, "VVC intra (VTM)"))
    rate = bd_rate(subject["bpp"], subject["psnr_rgb_db"], reference["bpp"], reference["psnr_rgb_db"])
    assert abs(rate - expected) < 0.3


def test_a_bd_rate_is_the_mean_of_the_logarithms():
    rates, quality = np.array([0.1, 0.3, 0.9]), np.array([30, 34, 38])
    assert math.isclose(bd_rate(2 * rates, quality, rates, quality), 100)
    assert math.isnan(bd_rate(rates, quality + 20, rates, quality))


def test_points_without_error_are_left_out():
    rate, quality = [0.5, 1, 2, 4], [30.0, 33.0, 37.0, 41.0]
    other = [1.1 * each for each in rate]
    exact = bd_rate([*other, 3.0], [*quality, np.inf], rate, quality)
    assert exact == pytest.approx(bd_rate(other, quality, rate, quality)) == pytest.approx(10)


def test_metrics_of_equal_and_of_different_pictures():
    a = natural(176, 176, 3)
    b = np.clip(a.astype(int) + np.random.default_rng(0).integers(-20, 21, a.shape), 0, 255).astype(np.uint8)
    assert metrics.psnr(a, a) == math.inf
    assert math.isclose(metrics.psnr(a, a ^ 1), 10 * math.log10(255**2), abs_tol=1e-9)
    for metric in metrics.METRICS.values():
        if metric.version():
            equal, different = (metric.axis(np.float64(metric.function(a, x))) for x in (a, b))
            assert equal > different


def test_a_curve_depends_on_what_its_model_imports():
    package = Path(lic.__file__).parent
    files = {file.relative_to(package).as_posix() for file in peers._imported(package / "models/wavelet.py", package)}
    assert {"models/wavelet.py", "layers/lifting.py", "layers/tiles.py", "entropy.py", "codec.py"} <= files
    assert not any(name in file for file in files for name in ("hyperprior", "gdn", "bench"))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(2):
        Image.fromarray(natural(176, 192, 3, seed=seed)).save(folder / f"{seed}.png")
    Image.fromarray(natural(20, 20, 3)).save(folder / "small.png")
    return folder


def test_what_is_measured_and_what_comes_from_the_cache(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "METRICS", {"psnr_rgb_db": metrics.METRICS["psnr_rgb_db"]})

    def run(*subjects):
        return bench.run(bench.find_pictures(folder), subjects, cache=tmp_path / "cache")

    first = run(JPEG, ABSENT)
    assert "Absent skipped: no-such-package is not installed" in capsys.readouterr().out
    assert first["pictures"] == ["0.png", "1.png"]
    assert first["measured"] == 4
    point = first["points"][1]
    with Image.open(folder / point["picture"]) as image:
        image.save(tmp_path / "x.jpg", **point["settings"])
    assert point["bpp"] == 8 * (tmp_path / "x.jpg").stat().st_size / (176 * 192)
    with Image.open(folder / point["picture"]) as image, Image.open(tmp_path / "x.jpg") as decoded:
        assert point["psnr_rgb_db"] == metrics.psnr(np.asarray(image), np.asarray(decoded))

    both = run(JPEG, WEBP)
    assert both["measured"] == 4
    assert both["curves"]["jpeg"] == first["curves"]["jpeg"]
    Image.fromarray(natural(176, 192, 3, seed=7)).save(folder / "1.png")
    assert run(JPEG, WEBP)["measured"] == 4


def test_the_command_writes_a_report(folder, tmp_path, capsys):
    out, cache = tmp_path / "out", tmp_path / "cache"
    options = ["--dataset", str(folder), "--models", "--peers", "jpeg", "webp", "--quick", "--limit", "1"]
    assert cli.main(["bench", *options, "--out", str(out), "--cache", str(cache), "--jobs", "1"]) == 0
    assert "JPEG against" in capsys.readouterr().out
    results = json.loads((out / "report.json").read_text())
    assert set(results["curves"]) == {"jpeg", "webp"}
    assert results["costs"]["webp"]["decode_s_per_mp"] > 0
    assert (out / "psnr_rgb_db.svg").read_text().startswith("<?xml")
    assert "psnr_rgb_db.svg" in (out / "report.md").read_text()


def test_the_profile_names_what_takes_time(folder, capsys):
    assert cli.main(["bench", "--dataset", str(folder), "--models", "wavelet", "--profile"]) == 0
    text = capsys.readouterr().out
    assert "layers/integer.py" in text
    assert "coefficients" in text
    assert "one table" in text
