"""Every function that opens a file is fuzzed: a new one needs a line here, and a target that reaches it."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT
from tests.fuzz.targets import TARGETS

PACKAGES = ("datasets", "metrics", "nvae", "flat_vae", "launch")
FILE_CALLS = {"open", "fdopen", "urlopen", "read_bytes", "read_text", "ZipFile", "open_regular"}
HELPERS = {  # module: its functions that open a file for their caller
    "np": {"load"},
    "torch": {"load"},
    "files": {"read", "read_json", "read_npz", "read_tensors", "load_tensors", "sha256"},
    "records": {"read"},
}
READERS = {  # function that opens a file: the target whose damage it meets
    "datasets.cache:_open": "cache-meta",
    "datasets.celeba_lists:_lines": "celeba-lists",
    "datasets.cifar:check_archive": "cifar10",
    "datasets.cifar:_from_archive": "cifar10",
    "datasets.cifar:_from_folder": "cifar10",
    "datasets.decode:each_image": "images",
    "datasets.decode:one": "images",
    "datasets.dsprites:check_official": "dsprites-npz",
    "datasets.dsprites:_npy_rows": "dsprites-reader",
    "datasets.files:open_regular": "links-and-pipes",
    "datasets.files:read_bytes": "images",
    "datasets.files:read_text": "celeba-lists",
    "datasets.files:_member": "celeba-lists",
    "datasets.files:zip_files": "celeba-lists",
    "datasets.files:reader": "celeba-lists",
    "datasets.frey:_read": "frey-mat",
    "datasets.labels:read_table": "label-tables",
    "datasets.mnist:_read": "mnist",
    "metrics.inception:load_inception": "inception-weights",
    "launch.compare:_scoring": "run-scores",
    "launch.compress:_checkpoint_of": "checkpoint",
    "launch.compress:_decompress": "container",
    "launch.machine.files:read": "json-records",
    "launch.machine.files:read_npz": "codes",
    "launch.machine.files:load_tensors": "checkpoint",
    "launch.machine.files:sha256": "checkpoint",
    "launch.machine.files:parse": "codes",
    "launch.report.runs:_per_image": "run-scores",
    "launch.report.runs:read_record": "run-scores",
    "launch.report.runs:read_run": "run-scores",
    "launch.results.encoding:load": "encoded-codes",
    "launch.results.importing:_load": "published-weights",
    "launch.export:export": "json-records",
    "launch.results.run:open_run": "run-config",
    "launch.results.score_codes:read_codes": "codes",
    "launch.results.score_codes:_from_npz": "codes",
    "launch.results.score_codes:_from_csv": "codes-table",
    "launch.results.score_run:score_folders": "inception-weights",
    "launch.studies.ablation:_records": "json-records",
    "launch.studies.ablation:is_done": "json-records",
    "launch.studies.ablation:train": "json-records",
    "launch.studies.frey_figures:_codes": "codes",
    "launch.studies.grouped_report:read": "json-records",
    "launch.studies.frey_runs:read": "json-records",
    "launch.studies.study:_store": "json-records",
    "launch.studies.study:_is_scored": "json-records",
    "launch.studies.study:complete": "json-records",
    "launch.studies.study:is_done": "json-records",
    "launch.studies.sweep_report:measure": "json-records",
    "launch.training.checkpoint:load": "checkpoint",
    "launch.training.checkpoint:recorded_sha256": "checkpoint-checksum",
    "launch.training.folder:read_json": "json-records",
    "launch.training.memory:throughput": "throughput",
    "launch.training.records:read": "metrics-lines",
    "launch.training.resume:_refuse_to_start_over": "metrics-lines",
    "launch.training.jobs:fault": "script-log",
    "launch.training.jobs:claim": "json-records",
}
NO_READERS = {  # they write, ask the kernel, open what this process has just made, or open no file at all
    "datasets.cache:_locked",
    "datasets.cache:_build",
    "datasets.cache:_write_text",
    "datasets.download:fetch",  # what it wrote is checked by the reader of the data set
    "datasets.download:_md5",
    "launch.compress:_compress",
    "launch.console.figures:rasterise",
    "launch.console.terminal:_point_at_nothing",
    "launch.console.terminal:protect",
    "launch.machine.files:_fsync_folder",
    "launch.results.explorer:do_GET",  # its own page
    "launch.machine.files:write_atomically",
    "launch.training.memory:free_bytes",  # /proc/meminfo
    "launch.training.records:_append",
    "launch.training.jobs:run",
}


def _opens(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    function = node.func
    if isinstance(function, ast.Name):
        return function.id in FILE_CALLS | {"read_npz", "read_tensors", "read_json", "read_record"}
    if not isinstance(function, ast.Attribute):
        return False
    owner = getattr(function.value, "id", "") or getattr(function.value, "attr", "")
    if owner in HELPERS:
        return function.attr in HELPERS[owner]
    return function.attr in FILE_CALLS and owner not in {"data", "config", "self"}  # these open data sets


def openers(source: str) -> Iterator[str]:
    """Names of the functions that open a file themselves."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and any(map(_opens, ast.walk(node))):
            yield node.name


def _found() -> set[str]:
    return {
        f"{'.'.join(file.relative_to(ROOT).with_suffix('').parts)}:{name}"
        for package in PACKAGES
        for file in sorted((ROOT / package).rglob("*.py"))
        for name in openers(file.read_text())
    }


def test_every_reader_has_a_fuzz_target() -> None:
    found = _found()
    assert found - READERS.keys() - NO_READERS == set(), "fuzz them: tests/fuzz/run_targets.py shows how"
    assert (READERS.keys() | NO_READERS) - found == set(), "they are gone, or open nothing any more"
    assert set(READERS.values()) - TARGETS.keys() == set()


@pytest.mark.parametrize(
    "line",
    [
        "open(path)",
        "path.open('rb')",
        "path.read_text()",
        "np.load(path, allow_pickle=False)",
        "torch.load(path)",
        "zipfile.ZipFile(path)",
        "tarfile.open(path)",
        "Image.open(path)",
        "files.read_json(path)",
        "records.read(path)",
        "os.open(path, os.O_RDONLY)",
    ],
)
def test_what_opens_a_file_is_seen(line: str) -> None:
    assert list(openers(f"def f():\n    return {line}")) == ["f"]
