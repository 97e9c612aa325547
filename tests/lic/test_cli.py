"""The command line: what a user types, and what it says."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lic import cli
from tests.lic.conftest import natural


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.png" for name in "ab"]
    for seed, path in enumerate(paths):
        Image.fromarray(natural(60, 80, 3, seed=seed)).save(path)
    return paths


def test_pictures_go_to_lic_files_and_back(pictures, tmp_path, capsys):
    out, back = tmp_path / "out", tmp_path / "back"
    assert cli.main(["encode", *map(str, pictures), "-o", str(out), "--quality", "90", "--jobs", "2"]) == 0
    files = sorted(out.iterdir())
    assert [file.name for file in files] == ["a.lic", "b.lic"]
    assert cli.main(["decode", *map(str, files), "-o", str(back), "--device", "cpu"]) == 0
    with Image.open(pictures[1]) as original, Image.open(back / "b.png") as decoded:
        assert np.abs(np.asarray(original).astype(int) - np.asarray(decoded)).mean() < 5
    assert cli.main(["info", *map(str, files)]) == 0
    text = capsys.readouterr().out
    assert "80×60, RGB, 8 bits" in text
    assert "coefficients" in text


def test_a_target_size(pictures, tmp_path):
    assert cli.main(["encode", str(pictures[0]), "-o", str(tmp_path / "x.lic"), "--target-size", "700"]) == 0
    assert 680 < (tmp_path / "x.lic").stat().st_size <= 700


def test_a_serial_context(pictures, tmp_path, capsys):
    target = str(tmp_path / "x.lic")
    assert cli.main(["encode", str(pictures[0]), "-o", target, "--model", "hybrid", "--context", "serial"]) == 0
    assert cli.main(["info", target]) == 0
    assert "hybrid_serial" in capsys.readouterr().out
    assert cli.main(["encode", str(pictures[0]), "-o", target, "--context", "serial", "--force"]) == 1
    assert "choose hybrid" in capsys.readouterr().err


def test_what_is_there_is_kept_unless_forced(pictures, tmp_path):
    target = tmp_path / "a.lic"
    target.write_bytes(b"mine")
    assert cli.main(["encode", str(pictures[0])]) == 0
    assert target.read_bytes() == b"mine"
    assert cli.main(["encode", str(pictures[0]), "--force"]) == 0
    assert target.read_bytes() != b"mine"


def test_a_bad_file_is_named_and_the_others_are_done(pictures, tmp_path, capsys):
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    assert cli.main(["encode", str(bad), str(pictures[1])]) == 1
    assert str(bad) in capsys.readouterr().err
    assert (tmp_path / "b.lic").exists()
    assert not (tmp_path / "bad.lic").exists()
    assert cli.main(["info", str(bad)]) == 1


def test_the_models_are_listed(capsys):
    assert cli.main(["models"]) == 0
    assert "wavelet" in capsys.readouterr().out


def test_python_m_lic():
    done = subprocess.run([sys.executable, "-m", "lic", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("lic ")
