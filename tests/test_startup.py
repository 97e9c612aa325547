"""What installing the wheel does to an interpreter: .lic is there unasked, costs next to nothing, and goes again."""

import multiprocessing
import os
import pkgutil
import subprocess
import sys
import venv
import zipfile
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

import lic_startup

pytest.importorskip("hatchling")

ROOT = Path(__file__).parents[1]
INHERITED = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LIC_"))}
REGISTERED = """
import sys
from PIL import Image
assert Image.registered_extensions()[".lic"] == "LIC"
import imageio.config
assert imageio.config.known_extensions[".lic"] and imageio.config.known_plugins["lic"]
assert not any(type(finder).__name__ == "ImportHook" for finder in sys.meta_path), "nothing is left to wait for"
"""
PRINT = """
from PIL import Image
import imageio.config
print(".lic" in Image.registered_extensions(), "lic" in imageio.config.known_plugins)
"""
PICTURE = """
from PIL import Image
picture = Image.linear_gradient("L").resize((48, 32)).convert("RGB")
"""


class Environment:
    """A virtual environment that borrows the packages of the one that runs the tests, but not their .pth files."""

    def __init__(self, folder: Path):
        venv.create(folder)
        self.folder = folder
        self.python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.site = Path(self.run("import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        borrowed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        (self.site / "borrowed.pth").write_text("\n".join(borrowed))

    def run(self, script: str, *flags: str, **environment: str) -> str:
        (self.folder / "script.py").write_text(script)
        done = subprocess.run(
            [self.python, *flags, "script.py"],
            cwd=self.folder, env=INHERITED | environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def pip(self, *arguments: object) -> None:
        command = [sys.executable, "-m", "pip", "--python", self.python, "--quiet", *arguments]
        subprocess.run(list(map(str, command)), check=True, env=INHERITED)

    def install(self, *what: object) -> None:
        self.pip("install", "--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed", *what)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT],
        check=True,
    )
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("environment"))
    environment.install(wheel)
    return environment


def test_wheel_holds_what_it_must(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "lic_startup.py",
        "lic_startup.pth",
        "lic_startup.start",
        "pillow_lic/py.typed",
        "imageio_lic/py.typed",
    ):
        assert name in names


def test_start_file_names_the_callable(wheel: Path):
    """PEP 829: for Python 3.15 and later."""
    assert callable(pkgutil.resolve_name(zipfile.ZipFile(wheel).read("lic_startup.start").decode().strip()))


LOADED = """
import sys
print(sorted({"PIL", "imageio", "lic", "lic_startup", "numpy", "pillow_lic", "torch"} & set(sys.modules)))
"""


def test_start_imports_nothing(environment: Environment):
    assert environment.run(LOADED) == "['lic_startup']\n"


def test_registering_is_light(environment: Environment):
    assert environment.run("import PIL.Image" + LOADED) == "['PIL', 'lic_startup', 'pillow_lic']\n"
    assert environment.run("import imageio.config, sys; print('lic' in sys.modules)") == "False\n"


@pytest.mark.parametrize("flags", ["", "-I", "-E -s", "-W error", "-O", "-X dev"])
def test_registers_by_itself(environment: Environment, flags: str):
    environment.run(REGISTERED, *flags.split())


def test_subprocess(environment: Environment):
    environment.run(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {REGISTERED!r}], check=True)")


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_multiprocessing(environment: Environment, method: str):
    environment.run(f"""
import multiprocessing
def check():
    exec({REGISTERED!r})
if __name__ == "__main__":
    process = multiprocessing.get_context({method!r}).Process(target=check)
    process.start()
    process.join()
    assert process.exitcode == 0
""")


def test_libraries_imported_before(wheel: Path, tmp_path: Path):
    environment = Environment(tmp_path)
    environment.install(wheel)
    (environment.site / "early.pth").write_text("import PIL.Image, imageio.config\n")
    assert environment.run(PRINT) == "True True\n"


def test_by_hand_where_turned_off(environment: Environment):
    assert environment.run(PRINT, LIC_NO_AUTOLOAD="1") == "False False\n"
    assert environment.run("import pillow_lic, imageio_lic" + PRINT, LIC_NO_AUTOLOAD="1") == "True True\n"
    environment.run("import imageio_lic, pillow_lic" + REGISTERED)


def test_registering_twice(environment: Environment):
    environment.run(
        f"import lic_startup; lic_startup.install(); lic_startup.install(){REGISTERED}lic_startup.install()"
    )


def test_loaders_are_left_as_they_were(environment: Environment):
    environment.run("""
import importlib.util, inspect
from importlib.machinery import SourceFileLoader
importlib.util.find_spec("PIL.Image")  # a look alone must not count as the import
import PIL.Image, imageio.config
for module in (PIL.Image, imageio.config):
    loader = module.__spec__.loader
    assert type(loader) is SourceFileLoader and loader is module.__loader__
    assert "exec_module" not in vars(loader)
    assert loader.get_code(module.__name__) and inspect.getsource(module)
    assert loader.get_resource_reader(module.__name__)
assert ".lic" in PIL.Image.EXTENSION
""")


def test_a_loader_that_others_share_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    class Loader:
        @staticmethod
        def exec_module(module: ModuleType) -> None: ...

    class Finder:
        @staticmethod
        def find_spec(name: str, *_: object) -> ModuleSpec:
            return ModuleSpec(name, Loader)

    before, hook = dict(vars(Loader)), lic_startup.ImportHook()
    monkeypatch.setattr(sys, "meta_path", [hook, Finder])
    assert hook.find_spec("PIL.Image") is None
    assert dict(vars(Loader)) == before


def test_a_broken_plugin_does_not_break_pillow(environment: Environment):
    output = environment.run("import sys; sys.modules['pillow_lic'] = None" + PRINT)
    assert output.startswith("False True\nlic: cannot register the .lic format (pillow_lic)")


def test_an_import_that_fails_at_first(environment: Environment):
    environment.run(f"""
import sys
sys.modules["PIL._imaging"] = None
try:
    import PIL.Image
except ImportError:
    del sys.modules["PIL._imaging"]
else:
    raise AssertionError
{REGISTERED}
""")


def test_editable_install(tmp_path: Path):
    environment = Environment(tmp_path)
    environment.install("--editable", ROOT)
    environment.run(REGISTERED)


def test_uninstalling_leaves_nothing(wheel: Path, tmp_path: Path):
    environment = Environment(tmp_path)
    before = set(environment.site.rglob("*"))
    environment.install(wheel)
    environment.run(REGISTERED)
    environment.pip("uninstall", "--yes", "lic-codec")
    assert set(environment.site.rglob("*")) == before
    assert environment.run("import sys; print('lic_startup' in sys.modules)") == "False\n"


def test_pillow_script(environment: Environment):
    environment.run(
        PICTURE
        + """
picture.save("a.lic", quality=90)
back = Image.open("a.lic", formats=["LIC"])
assert back.size == picture.size and back.getpixel((0, 0))
"""
    )


def test_imageio_script(environment: Environment):
    environment.run(
        PICTURE
        + """
import imageio.v2, imageio.v3, numpy
imageio.v3.imwrite("b.lic", numpy.asarray(picture, "uint16") * 257)
assert imageio.v3.imread("b.lic").dtype == imageio.v2.imread("b.lic").dtype == "uint16"
"""
    )


def test_dataset_loader(environment: Environment):
    """The way of torchvision's datasets: an open file, closed when the picture has been converted."""
    environment.run(
        PICTURE
        + """
def pil_loader(path):
    with open(path, "rb") as file:
        return Image.open(file).convert("RGB")
picture.save("c.lic")
assert pil_loader("c.lic").size == picture.size
"""
    )


def test_skimage(environment: Environment):
    pytest.importorskip("skimage")
    environment.run(
        PICTURE
        + """
import numpy, skimage.io
skimage.io.imsave("d.lic", numpy.asarray(picture))
assert skimage.io.imread("d.lic").shape == (32, 48, 3)
"""
    )


def test_matplotlib(environment: Environment):
    pytest.importorskip("matplotlib")
    environment.run(
        PICTURE
        + """
import matplotlib, numpy
matplotlib.use("agg")
from matplotlib import pyplot
pyplot.imsave("e.lic", numpy.asarray(picture))
assert pyplot.imread("e.lic").shape[:2] == (32, 48)
"""
    )
