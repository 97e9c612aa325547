"""Registers the .lic format as soon as a program imports Pillow or imageio; every interpreter start pays for this file.

lic_startup.pth calls `install` as the interpreter starts (lic_startup.start does in Python 3.15 and later, PEP 829).
It imports neither library: it waits for them. Set LIC_NO_AUTOLOAD=1 in the environment to turn it off.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

# Module to wait for -> package that registers the format there when it is imported.
PLUGINS = {"PIL.Image": "pillow_lic", "imageio.config": "imageio_lic"}


def install() -> None:
    """Register where a library is already imported, and wait for the others."""
    if os.environ.get("LIC_NO_AUTOLOAD") or any(isinstance(finder, ImportHook) for finder in sys.meta_path):
        return
    hook = ImportHook()
    sys.meta_path.insert(0, hook)
    for name in PLUGINS:
        if name in sys.modules:
            hook.imported(name)


class ImportHook:
    """A finder that leaves finding to the others, and learns when a module it waits for has been executed."""

    def __init__(self) -> None:
        self.waiting = dict(PLUGINS)

    def find_spec(self, name: str, path: object = None, target: object = None) -> "ModuleSpec | None":
        if name not in self.waiting:
            return None
        try:
            found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)  # type: ignore[arg-type]
            spec = next(filter(None, found))
            self.watch(name, spec.loader)
        except Exception:  # a finder or loader of an unusual kind: leave this import to it
            return None
        return spec

    def watch(self, name: str, loader: object) -> None:
        """Shadow `loader.exec_module`, on this one instance and until it is called."""
        execute = loader.exec_module  # type: ignore[attr-defined]

        def exec_module(module: "ModuleType") -> None:
            vars(loader).pop("exec_module", None)
            execute(module)
            self.imported(name)

        vars(loader)["exec_module"] = exec_module  # a TypeError where the loader is a class, hence shared

    def imported(self, name: str) -> None:
        plugin = self.waiting.pop(name, None)
        if not self.waiting and self in sys.meta_path:
            sys.meta_path.remove(self)
        if plugin:
            try:
                __import__(plugin)
            except Exception as error:  # the program that imports Pillow must go on, .lic or not
                print(f"lic: cannot register the .lic format ({plugin}): {error!r}", file=sys.stderr)
