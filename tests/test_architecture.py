"""Who may import whom: data flows one way, and a new import that breaks this is a design decision, not an accident."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator

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


def test_nothing_unpickles() -> None:
    """No file that a user downloads can execute code: every torch.load is weights_only, every np.load refuses pickles."""
    for package in (*MAY_IMPORT, "benchmarks"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                owner = getattr(node.func.value, "id", "")
                given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
                where = f"{file.relative_to(ROOT)}:{node.lineno}"
                if (owner, node.func.attr) == ("torch", "load"):
                    assert given.get("weights_only") is True, where
                if (owner, node.func.attr) == ("np", "load"):
                    assert given.get("allow_pickle") is False, where
                assert (owner, node.func.attr) not in {("pickle", "load"), ("pickle", "loads"), ("joblib", "load")}, (
                    where
                )


def test_nothing_names_this_machine_or_an_index() -> None:
    """Files of the project hold no address of a package index."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    hosts = ["pypi" + ".org", "python" + "hosted", "download.py" + "torch"]
    for name in tracked:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".lock", ".txt", ""} and path.is_file():
            text = path.read_text(errors="ignore")
            assert not [host for host in hosts if host in text], name
