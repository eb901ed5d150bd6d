"""retinue: image-model methods from 52 papers, as interchangeable parts of one engine.

`import retinue` costs next to nothing: everything below is imported when it is first used.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_ATTRIBUTES = {  # name -> module that defines it
    "create_model": "retinue.models",
    "list_models": "retinue.models",
    "optimize": "retinue.models",
    "fit": "retinue.engine",
    "evaluate": "retinue.engine",
    "load": "retinue.engine",
    "stages": "retinue.engine",
    "map": "retinue.engine",
    "systems": "retinue.catalog",
    "views": "retinue.data",
}
_PACKAGES = (
    "audit", "catalog", "claims", "cli", "compress", "continual", "data", "distill", "engine", "errors", "explain", "generate", "grow",
    "losses", "metrics", "models", "plots", "pretrain", "report", "scenes", "search", "studio", "theory", "train",
)  # fmt: skip

if TYPE_CHECKING:
    from retinue.catalog import systems as systems
    from retinue.data import views as views
    from retinue.engine import evaluate as evaluate
    from retinue.engine import fit as fit
    from retinue.engine import load as load
    from retinue.engine import map as map
    from retinue.engine import stages as stages
    from retinue.models import create_model as create_model
    from retinue.models import list_models as list_models
    from retinue.models import optimize as optimize


def __getattr__(name: str) -> Any:
    if name in _ATTRIBUTES:
        return getattr(importlib.import_module(_ATTRIBUTES[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"retinue.{name}")
    raise AttributeError(f"module 'retinue' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ATTRIBUTES, *_PACKAGES])


class _RegisterWithTimm(importlib.abc.MetaPathFinder):
    """Registers our networks with timm at the moment when timm itself is imported, so that `import retinue` need not import it."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != "timm":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("timm")
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_then_register(module: ModuleType) -> None:
            load(module)
            importlib.import_module("retinue.models")

        spec.loader.exec_module = load_then_register  # type: ignore[method-assign]
        return spec


if "timm" in sys.modules:
    importlib.import_module("retinue.models")
else:
    sys.meta_path.insert(0, _RegisterWithTimm())
