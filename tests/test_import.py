"""`import retinue` costs next to nothing, and what needs no tensors imports no torch."""

import json
import re

import pytest
from support import HEAVY, SOURCE, python

LOADED = f"import sys, json; print(json.dumps(sorted(set({HEAVY!r}) & set(sys.modules))), file=sys.stderr)"


def test_the_import_of_retinue_takes_a_twentieth_of_the_time_of_torch() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import retinue; mid = time.perf_counter(); "
        "import torch; print((mid - start) / (time.perf_counter() - mid))"
    )
    assert float(python(code).stdout) < 0.05


def test_the_import_of_retinue_imports_three_modules_of_its_own_at_most() -> None:
    code = "import sys, json, retinue; print(json.dumps([name for name in sys.modules if name.startswith('retinue')]))"
    assert json.loads(python(code).stdout) == ["retinue"]


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], ["systems"], ["systems", "few", "labels"], ["show", "inception-v4"], ["show", "--help"]],
    ids=" ".join,
)
def test_commands_that_only_speak_import_nothing_heavy(words: list[str]) -> None:
    done = python(f"import sys, retinue.cli; code = retinue.cli.main({words!r}); {LOADED}; sys.exit(code)")
    assert json.loads(done.stderr.splitlines()[-1]) == []
    assert len(done.stdout) > 10


def test_a_mistyped_command_imports_nothing_heavy() -> None:
    done = python(f"import retinue.cli; retinue.cli.main(['evaluat']); {LOADED}")
    assert json.loads(done.stderr.splitlines()[-1]) == []


def test_every_public_name_is_found_when_it_is_asked_for() -> None:
    code = (
        "import retinue\n"
        "for name in [*retinue._ATTRIBUTES, *retinue._PACKAGES]: assert getattr(retinue, name) is not None, name\n"
        "assert {'fit', 'create_model', 'data', 'train', '__version__'} <= set(dir(retinue))\n"
        "from retinue import create_model, data, train\n"
        "print(retinue.create_model is retinue.models.create_model, retinue.map is retinue.engine.map)\n"
    )
    assert python(code).stdout == "True True\n"


def test_every_package_of_the_source_can_be_reached_from_retinue() -> None:
    import retinue

    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")} | {"catalog", "errors"}
    assert set(retinue._PACKAGES) == packages


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    import retinue

    with pytest.raises(AttributeError, match=r"^module 'retinue' has no attribute 'fitt'$"):
        getattr(retinue, "fitt")  # noqa: B009


def test_the_version_is_the_one_of_the_project() -> None:
    import retinue

    text = (SOURCE.parents[1] / "pyproject.toml").read_text()
    assert f'version = "{retinue.__version__}"' in text
    assert re.fullmatch(r"\d+\.\d+\.\d+", retinue.__version__)


CREATE = (
    "model = timm.create_model('retinue_cifar_resnet', num_classes=7)\n"
    "names = timm.list_models()\n"
    "print(type(model).__module__, model.num_classes, len(names) > 500, timm.__spec__.name, 'retinue_mlp' in names)\n"
)


@pytest.mark.parametrize(
    "imports",
    [
        "import retinue, timm",
        "import timm, retinue",
        "import retinue, timm.layers, timm",
        "import importlib, retinue; from timm import create_model; importlib.reload(retinue); import timm",
    ],
)
def test_our_networks_register_with_timm_whatever_is_imported_first(imports: str) -> None:
    assert python(f"{imports}\n{CREATE}").stdout == "retinue.models.network 7 True timm True\n"


def test_a_timm_that_is_not_installed_is_not_hidden_by_us() -> None:
    code = (
        "import sys, retinue\n"
        "path = list(sys.path); sys.path[:] = []\n"
        "sys.path_importer_cache.clear()\n"
        "try: import timm\n"
        "except ModuleNotFoundError as error: print(error)\n"
    )
    assert python(code).stdout == "No module named 'timm'\n"
