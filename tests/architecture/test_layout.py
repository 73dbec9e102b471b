"""Where things are, and who knows whom: what the import contracts do not say."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "everydream"
SOURCES = sorted(PACKAGE.rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Yield every module that a file imports, at its top or within a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def importers(library: str, folder: str = "everydream") -> set[str]:
    files = sorted((ROOT / folder).rglob("*.py"))
    return {name(p) for p in files if any(m == library or m.startswith(f"{library}.") for m in imports(p))}


def test_there_is_something_to_look_at() -> None:
    assert len(SOURCES) > 40


def test_datasets_hold_pictures_and_no_package() -> None:
    """A package of that name would hide Hugging Face's `datasets`."""
    assert not list((ROOT / "datasets").rglob("__init__.py"))
    assert not (ROOT / "datasets.py").exists()


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_families_are_named_in_the_models_room_alone(path: Path) -> None:
    if PACKAGE / "models" in path.parents:
        return
    code = ast.parse(path.read_text(encoding="utf-8"))
    words = {node.value for node in ast.walk(code) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    words |= {node.id for node in ast.walk(code) if isinstance(node, ast.Name)}
    words |= {node.attr for node in ast.walk(code) if isinstance(node, ast.Attribute)}
    found = {word for word in words if re.fullmatch(r"(?i)sd_?1|sd_?2|sdxl|sd_?3|flux", word.strip())}
    assert not found
    assert not any(re.search(r"\.models\.(sd|common\.stable)", module) for module in imports(path))


def test_libraries_are_known_where_they_belong() -> None:
    assert importers("accelerate") == {"everydream/training/launch.py"}
    captioners = {"everydream/tools/captioning/model.py"}
    for library, others in (("diffusers", set()), ("transformers", captioners)):
        assert all(path.startswith("everydream/models/") for path in importers(library) - others), library
        assert importers(library) > others
    assert importers("peft") == {"everydream/methods/lora.py"}
    assert all(path.startswith("everydream/models/") for path in importers("huggingface_hub"))
    doors = {"everydream/cli.py", "everydream/told.py"}
    assert all(path in doors or path.endswith("/cli.py") for path in importers("typer"))
    assert importers("typer", "scrapers") == {"scrapers/cli.py"}
    for library in ("xformers", "bitsandbytes", "torchvision", "datasets", "random"):
        assert importers(library) == set(), library
    assert importers("everydream", "scrapers") == set() and importers("scrapers") == {"everydream/cli.py"}
    assert importers("aiohttp", "scrapers")
    doors = {"everydream/data/remote.py"}
    assert all(path in doors or path.startswith("everydream/studio/") for path in importers("aiohttp"))
    assert importers("everydream", "pictures") | importers("scrapers", "pictures") == set()


def test_no_family_folder_imports_another() -> None:
    families = [path.name for path in (PACKAGE / "models").iterdir() if path.name.startswith("sd")]
    assert len(families) >= 2
    for family in families:
        for other in set(families) - {family}:
            assert not importers(f"everydream.models.{other}", f"everydream/models/{family}")


def test_family_folders_hold_the_same_files() -> None:
    folders = [p for p in (PACKAGE / "models").iterdir() if p.is_dir() and p.name.startswith("sd")]
    files = [sorted(f.name for f in folder.glob("*.py")) for folder in folders]
    assert all(content == files[0] for content in files)


def test_nothing_executes_what_files_say() -> None:
    """Files of others are data: no pickle but the restricted reader's, no eval, no yaml.load without a safe loader."""
    assert importers("pickle") <= {"everydream/formats/pickles.py"}
    forbidden = {"eval", "exec", "pickle.load", "pickle.loads", "os.system", "torch.jit.load", "torch.hub.load"}
    for path in SOURCES:
        calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
        assert not {ast.unparse(call.func) for call in calls} & forbidden
        for call in calls:
            if ast.unparse(call.func) == "torch.load" and name(path) != "everydream/formats/pickles.py":
                assert ("weights_only", "True") in {(k.arg, ast.unparse(k.value)) for k in call.keywords}, name(path)


@pytest.mark.parametrize(
    "module", ["everydream.cli", "everydream.config", "everydream.reference", "scrapers.cli", "scrapers.names"]
)
def test_the_command_line_starts_without_the_model_libraries(module: str) -> None:
    """They take seconds to import, which `everydream --help` should not."""
    heavy = ["diffusers", "transformers", "accelerate", "xformers", "bitsandbytes", "tensorboard", "wandb", "pyarrow"]
    heavy += ["aiohttp", "cv2", "scipy", "ray", "fsspec"]
    code = f"import sys, {module}; print([name for name in {heavy!r} if sys.modules.get(name)])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_command_line_alone_does_not_import_torch() -> None:
    code = "import sys, everydream.cli; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("room", ["train", "tools.info.read"])
def test_optional_libraries_are_not_imported_at_start(room: str) -> None:
    """bitsandbytes is installed with the test extra; diffusers would import it by itself."""
    code = (
        f"import sys, everydream.{room}; from peft import LoraConfig\n"
        "assert not [name for name in sys.modules if name.startswith(('bitsandbytes.', 'xformers', 'wandb'))]\n"
        "from everydream.training.optimizers import class_of, kind_of\n"
        "assert class_of(kind_of('adamw_8bit')).__module__.startswith('bitsandbytes')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
