"""Who may import whom: data flows one way, and a new import that breaks this is a design decision, not an accident."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

MAY_IMPORT = {
    "datasets": set[str](),
    "metrics": set[str](),
    "nvae": {"metrics"},
    "flat_vae": {"metrics"},
    "launch": {"datasets", "metrics", "nvae", "flat_vae"},
}


def imported_modules(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_flow_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"{package} has no modules"
    for file in files:
        ours = {name.split(".")[0] for name in imported_modules(file.read_text())} & MAY_IMPORT.keys()
        assert ours - {package} <= MAY_IMPORT[package], f"{file.relative_to(ROOT)} imports {sorted(ours - {package})}"


# --- The layers of launch ---------------------------------------------------------------------------------------------

# From the top: a module imports only from its own layer and from those below it. Scripts are directly in launch/.
LAYERS = ["scripts", "studies", "report", "results", "training", "families", "console", "machine"]
MOST_MODULES = 44  # outside scripts and studies; lower it when modules go
MOST_ARROWS = 89  # imports between the layers below scripts and studies; lower it when imports go
MODELS = {"nvae", "flat_vae", "NVAE", "FlatVAE"}


def layer_of(module: str) -> str:
    """``launch.training.step`` is in training, ``launch.sample`` among the scripts."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else "scripts"


def modules_of_launch() -> dict[str, Path]:
    """Path of every module by its dotted name."""
    files = sorted((ROOT / "launch").rglob("*.py"))
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def imports_within_launch(path: Path, modules: Collection[str]) -> set[str]:
    """Modules of launch that a module imports."""
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {
                name if (name := f"{node.module}.{alias.name}") in modules else node.module for alias in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & set(modules)


def test_every_module_of_launch_is_in_a_layer() -> None:
    folders = {p.name for p in (ROOT / "launch").iterdir() if p.is_dir() and any(p.glob("*.py"))}
    assert folders == set(LAYERS) - {"scripts"}


def test_arrows_between_layers_point_down() -> None:
    modules = modules_of_launch()
    floor = {layer: len(LAYERS) - i for i, layer in enumerate(LAYERS)}
    for module, path in modules.items():
        up = {
            other for other in imports_within_launch(path, modules) if floor[layer_of(other)] > floor[layer_of(module)]
        }
        assert not up, f"{module} imports {sorted(up)} from a layer above its own"


def test_nothing_but_scripts_imports_a_study() -> None:
    modules = modules_of_launch()
    for module, path in modules.items():
        if layer_of(module) not in ("scripts", "studies"):
            studies = {m for m in imports_within_launch(path, modules) if layer_of(m) == "studies"}
            assert not studies, f"{module} imports {sorted(studies)}"


def test_launch_stays_small() -> None:
    counted = [m for m, path in modules_of_launch().items() if path.stem != "__init__"]
    assert len([m for m in counted if layer_of(m) not in ("scripts", "studies")]) <= MOST_MODULES


def test_layers_stay_apart() -> None:
    modules = modules_of_launch()
    arrows = [
        (module, other)
        for module, path in modules.items()
        for other in imports_within_launch(path, modules) - {"launch"}
        if layer_of(module) not in ("scripts", "studies", layer_of(other))
    ]
    assert len(arrows) <= MOST_ARROWS


def names_of_models(path: Path) -> list[int]:
    """Lines that import a model's package or test for one of the models with isinstance."""
    lines = []
    for node in ast.walk(ast.parse(path.read_text())):
        module = getattr(node, "module", None) or ""
        if isinstance(node, ast.ImportFrom) and module.split(".")[0] in MODELS:
            lines.append(node.lineno)
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            lines += [node.lineno for side in sides if isinstance(side, ast.Constant) and side.value in MODELS]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
            lines += [node.lineno for name in ast.walk(node.args[1]) if getattr(name, "id", "") in MODELS]
    return lines


def test_only_families_and_what_is_written_for_one_model_name_a_model() -> None:
    """Training, evaluation, scores, pictures and reports take any model that :mod:`metrics.model` describes."""
    for module, path in modules_of_launch().items():
        name = str(path.relative_to(ROOT))
        if layer_of(module) not in ("scripts", "studies", "families"):
            assert not names_of_models(path), f"{name}: {names_of_models(path)}"


def test_the_step_loads_no_model_and_no_plotting_and_scripts_start_soon() -> None:
    """The check runs in a new process, because this one has loaded everything; what scripts leave out takes four seconds."""
    program = """
import sys, launch.training.step, torch
print(*sys.modules)
import launch.sample, launch.train_flat_vae, launch.train_nvae
from launch.machine import execution
execution.leave_dynamo_unloaded()
optimizer = torch.optim.Adamax([torch.nn.Parameter(torch.ones(1))])
optimizer.load_state_dict(optimizer.state_dict())
optimizer.zero_grad()
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    of_step, of_script = (set(line.split()) for line in done.stdout.splitlines())
    assert not {name.split(".")[0] for name in of_step} & {"nvae", "flat_vae", "matplotlib", "tensorboard"}
    assert not {"torchvision", "torch._dynamo", "matplotlib", "triton"} & of_script


# --- What may be done to files ---------------------------------------------------------------------------------------

UNPICKLERS = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
FROM_TORCHVISION = {"MNIST", "CelebA", "inception_v3"}  # none of these unpickles; CIFAR10 and similar ones do


def loads_code(node: ast.AST) -> bool:
    """True if this node can execute the content of a file, or write where an archive says."""
    if isinstance(node, ast.ImportFrom):
        module, names = (node.module or "").split(".")[0], {alias.name for alias in node.names}
        readers = {"load", "loads", "Unpickler", "open"}
        return bool(
            (module in UNPICKLERS | {"torch", "numpy"} and names & readers)
            or (module == "torchvision" and not names <= FROM_TORCHVISION)
        )
    if isinstance(node, ast.Import):
        return any(alias.name.split(".")[0] == "torchvision" for alias in node.names)
    if isinstance(node, ast.Attribute):
        owner = getattr(node.value, "id", "")
        return node.attr in {"extractall", "loadmat", "Unpickler"} or (
            owner in UNPICKLERS and node.attr in {"load", "loads", "open"}
        )
    if not isinstance(node, ast.Call):
        return False
    owner, name = getattr(getattr(node.func, "value", None), "id", ""), getattr(node.func, "attr", "")
    given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
    return (
        ((owner, name) == ("torch", "load") and given.get("weights_only") is not True)
        or ((owner, name) == ("np", "load") and given.get("allow_pickle") is not False)
        or getattr(node.func, "id", "") in {"eval", "exec"}
    )


def test_nothing_unpickles() -> None:
    """No file that a user downloads can execute code: every torch.load is weights_only, every np.load refuses pickles."""
    for package in (*MAY_IMPORT, "benchmarks"):
        for file in sorted((ROOT / package).rglob("*.py")):
            found = [getattr(node, "lineno", 0) for node in ast.walk(ast.parse(file.read_text())) if loads_code(node)]
            assert not found, f"{file.relative_to(ROOT)}:{found}"


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "pickle.load(file)",
        "read = pickle.loads",
        "joblib.load(path)",
        "shelve.open(path)",
        "from pickle import load",
        "from torch import load",
        "from torchvision.datasets import CIFAR10",
        "from torchvision import datasets",
        "import torchvision",
        "archive.extractall(folder)",
        "eval(text)",
    ],
)
def test_what_unpickles_is_seen(line: str) -> None:
    assert any(loads_code(node) for node in ast.walk(ast.parse(line)))


def test_nothing_names_this_machine_or_an_index() -> None:
    """Files of the project hold no address of a package index."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    hosts = ["pypi" + ".org", "python" + "hosted", "download.py" + "torch"]
    for name in tracked:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".lock", ".txt", ""} and path.is_file():
            text = path.read_text(errors="ignore")
            assert not [host for host in hosts if host in text], name


def test_the_reliability_page_names_tests_that_exist() -> None:
    """The tables of docs/reliability.md list tests as `test_file`: `name`, `name`; each name is the start of a test's name."""
    sources = {path.stem: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    page = (ROOT / "docs" / "reliability.md").read_text()
    named = [
        (module, name)
        for module, names in re.findall(r"`(?:\w+/)?(test_\w+)`: ((?:`\w+`(?:, )?)+)", page)
        for name in re.findall(r"`(\w+)`", names)
    ]
    assert len(named) > 40, "the table is there"
    assert not [(m, n) for m, n in named if f"def test_{n}" not in sources.get(m, "")]


SCRIPTS = {file.stem for file in (ROOT / "launch").glob("*.py")} - {"__init__"}


def test_no_script_is_imported() -> None:
    """Code that two scripts share belongs to a layer below them."""
    for file in sorted((ROOT / "launch").rglob("*.py")):
        found = set[str]()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "launch":
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module.removeprefix("launch.").split(".")[0]} if "launch." in node.module else set()
            elif isinstance(node, ast.Import):
                found |= {alias.name.removeprefix("launch.") for alias in node.names if "launch." in alias.name}
        assert not found & SCRIPTS, f"{file.relative_to(ROOT)} imports {sorted(found & SCRIPTS)}"


# --- Prose ------------------------------------------------------------------------------------------------------------

CLAUSES = {"What", "Whether", "Where", "Of", "Whose", "How", "Which"}


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Docstrings of a file with their lines, those below fields included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


@pytest.mark.parametrize("package", [*MAY_IMPORT, "benchmarks", "tests"])
def test_a_docstring_begins_with_a_verb_or_a_noun(package: str) -> None:
    """A clause ("Whether ...", "Of the draws.") has to be read twice."""
    for file in sorted((ROOT / package).rglob("*.py")):
        for line, text in docstrings(file):
            assert text.split()[0].strip(",.:") not in CLAUSES, f"{file.relative_to(ROOT)}:{line}: {text}"
