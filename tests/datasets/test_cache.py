"""The cache: built once, checked, rebuilt if needed, never half-written, safe with concurrent processes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets import cache
from datasets.cache import Begin, Cached, cache_folders, open_cached
from datasets.spec import DataError

ROWS = np.random.default_rng(0).integers(0, 256, (10, 3, 4, 5), dtype=np.uint8)


class Builder:
    """Writes ROWS in two pieces and counts how often it had to."""

    def __init__(self, fail_with: BaseException | None = None) -> None:
        self.calls, self.fail_with = 0, fail_with

    def __call__(self, begin: Begin) -> dict[str, Any]:
        self.calls += 1
        write = begin(ROWS.shape)
        write(ROWS[:7])
        if self.fail_with:
            raise self.fail_with
        write(ROWS[7:])
        return {"bad": {}}


def open_it(folder: Path, build: Builder, fingerprint: str = "f" * 64, verify: bool = False, **recipe: Any) -> Cached:
    return open_cached([folder], "set", {"name": "set", **recipe}, fingerprint, build, verify)


def array_file(folder: Path) -> Path:
    (path,) = folder.glob("*.npy")
    return path


def test_is_built_once_and_opened_as_a_read_only_map(tmp_path: Path) -> None:
    build = Builder()
    for verify in (False, True):
        cached = open_it(tmp_path / "c", build, verify=verify)
        assert isinstance(cached.array, np.memmap)
        assert not cached.array.flags.writeable
        np.testing.assert_array_equal(cached.array, ROWS)
    assert build.calls == 1
    assert cached.meta["shape"] == [10, 3, 4, 5]
    assert cached.meta["sha256"] == hashlib.sha256(ROWS.tobytes()).hexdigest()
    assert sorted(path.suffix for path in (tmp_path / "c").iterdir()) == [".json", ".lock", ".npy"]


def test_is_rebuilt_when_sources_or_recipe_change(tmp_path: Path) -> None:
    build = Builder()
    open_it(tmp_path, build)
    open_it(tmp_path, build, fingerprint="e" * 64)
    assert build.calls == 2
    assert len(list(tmp_path.glob("*.npy"))) == 1  # the old array is gone
    open_it(tmp_path, build, fingerprint="e" * 64, size=32)
    assert build.calls == 3
    assert len(list(tmp_path.glob("*.npy"))) == 2  # another recipe lives beside it
    open_it(tmp_path, build, fingerprint="e" * 64)
    assert build.calls == 3


def test_a_flipped_bit_is_found_by_verify(tmp_path: Path) -> None:
    build = Builder()
    open_it(tmp_path, build)
    path = array_file(tmp_path)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    open_it(tmp_path, build)
    assert build.calls == 1  # the cheap checks can't see it
    np.testing.assert_array_equal(open_it(tmp_path, build, verify=True).array, ROWS)
    assert build.calls == 2


@pytest.mark.parametrize("damage", ["cut", "longer", "empty", "gone", "meta", "meta_field", "header"])
def test_plain_damage_is_found_always(tmp_path: Path, damage: str) -> None:
    build = Builder()
    open_it(tmp_path, build)
    array, (meta,) = array_file(tmp_path), tmp_path.glob("*.json")
    if damage == "cut":
        array.write_bytes(array.read_bytes()[:-3])
    elif damage == "longer":
        array.write_bytes(array.read_bytes() + b"x")
    elif damage == "empty":
        array.write_bytes(b"")
    elif damage == "gone":
        array.unlink()
    elif damage == "header":
        array.write_bytes(b"x" * array.stat().st_size)
    elif damage == "meta":
        meta.write_text(meta.read_text()[:40])
    else:
        meta.write_text(json.dumps(json.loads(meta.read_text()) | {"sha256": "0" * 64}))
    np.testing.assert_array_equal(open_it(tmp_path, build).array, ROWS)
    assert build.calls == 2


@pytest.mark.parametrize("error", [DataError("bad image"), KeyboardInterrupt()])
def test_a_failed_build_leaves_nothing_and_the_next_one_works(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        open_it(tmp_path, Builder(error))
    assert {path.suffix for path in tmp_path.iterdir()} == {".lock"}
    np.testing.assert_array_equal(open_it(tmp_path, Builder()).array, ROWS)


def test_a_cache_cut_short_while_it_is_read_ends_its_reader_and_is_built_again(tmp_path: Path) -> None:
    """Reading a mapped page that no longer exists kills the process with SIGBUS, so no wrong values are read."""
    rows = np.ones((100, 3, 64, 64), np.uint8)

    def build(begin: Begin) -> dict[str, Any]:
        begin(rows.shape)(rows)
        return {"bad": {}}

    def reopened() -> Cached:
        return open_cached([tmp_path], "set", {}, "f" * 64, build)

    reopened()
    (path,) = tmp_path.glob("*.npy")
    code = "import os, sys, numpy as np; a = np.load(sys.argv[1], mmap_mode='r'); os.truncate(sys.argv[1], 200); a[-1].sum()"
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -signal.SIGBUS
    np.testing.assert_array_equal(reopened().array, rows)


def test_a_failed_rebuild_keeps_the_old_cache(tmp_path: Path) -> None:
    build = Builder()
    open_it(tmp_path, build)
    with pytest.raises(DataError):
        open_it(tmp_path, Builder(DataError("bad image")), fingerprint="e" * 64)
    open_it(tmp_path, build)
    assert build.calls == 1


def test_too_little_space_is_reported_before_and_during_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(DataError, match=r"No space left on device; free some space .* cache_dir"):
        open_it(tmp_path, Builder(full))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage(10, 10, ROWS.size - 1))
    with pytest.raises(DataError, match="GB free"):
        open_it(tmp_path, Builder())
    assert {path.suffix for path in tmp_path.iterdir()} == {".lock"}


def test_folder_is_beside_the_data_unless_that_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "data"
    root.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert cache_folders(root, None)[0] == root / ".strata_cache"
    root.chmod(0o555)
    assert cache_folders(root, None)[0].parent == tmp_path / "home" / "strata"
    root.chmod(0o755)
    (tmp_path / "other" / "data").mkdir(parents=True)
    folders = {cache_folders(path, tmp_path / "c")[0] for path in (root, tmp_path / "other" / "data")}
    assert {folder.parent for folder in folders} == {tmp_path / "c"}
    assert len(folders) == 2  # two data sets in folders of one name do not displace each other


@pytest.fixture
def other_builder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has written half of the array, and writes the rest (other rows) when told to."""
    code = (
        "import sys, pathlib, numpy as np\n"
        "from datasets.cache import open_cached\n"
        "def build(begin):\n"
        "    write, half = begin((10, 3, 4, 5)), np.ones((5, 3, 4, 5), np.uint8)\n"
        "    write(half); print('half', flush=True); sys.stdin.readline(); write(half); return {}\n"
        f"open_cached([pathlib.Path({str(tmp_path)!r})], 'set', {{'name': 'set'}}, 'f' * 64, build)\n"
    )
    root = Path(__file__).resolve().parents[2]
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], cwd=root, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "half\n"
        yield process
        process.kill()


def test_a_second_process_waits_and_uses_what_the_first_built(
    tmp_path: Path, other_builder: subprocess.Popen[str]
) -> None:
    build = Builder()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(open_it, tmp_path, build)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.3)
        assert other_builder.stdin
        other_builder.stdin.write("go on\n")
        other_builder.stdin.flush()
        assert waiting.result(timeout=60).array.min() == 1
    assert build.calls == 0


def test_a_killed_build_blocks_nobody(tmp_path: Path, other_builder: subprocess.Popen[str]) -> None:
    other_builder.kill()
    other_builder.wait()
    assert list(tmp_path.glob("*.tmp"))
    np.testing.assert_array_equal(open_it(tmp_path, Builder()).array, ROWS)
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("what", ["header", "meta", "order", "place"])
def test_what_fuzzing_found_is_built_again(what: str, tmp_path: Path) -> None:
    """NumPy's and Python's readers may raise other errors than OSError and ValueError, or a header gives a wrong number of rows."""
    build = Builder()
    open_it(tmp_path, build)
    array, (meta,) = array_file(tmp_path), tmp_path.glob("*.json")
    raw = array.read_bytes()
    damaged = {
        "header": raw.replace(b"}", b" ", 1).replace(b"{", b"(", 1),
        "order": raw.replace(b"False", b"True ", 1),
        "place": raw[:8] + b"\x66\x00" + raw[10:],  # a header shorter by its padding: the rows begin earlier
    }
    if what == "meta":
        meta.write_text("[" * 100_000)
    else:
        array.write_bytes(damaged[what])
    np.testing.assert_array_equal(open_it(tmp_path, build).array, ROWS)
    assert build.calls == 2


def test_a_cache_beside_read_only_data_is_used_by_everybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, build = tmp_path / "data", Builder()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    root.mkdir()
    open_cached(cache_folders(root, None), "set", {"name": "set"}, "f" * 64, build)
    root.chmod(0o555)
    open_cached(cache_folders(root, None), "set", {"name": "set"}, "f" * 64, build)
    open_cached(cache_folders(root, None), "set", {"name": "set"}, "e" * 64, build)  # other images: its own
    root.chmod(0o755)
    assert build.calls == 2
    assert list((tmp_path / "home" / "strata").rglob("*.npy"))


def test_a_user_without_a_home_is_told_to_name_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home directory")))
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(DataError, match="--cache-dir"):
            cache_folders(tmp_path, None)
    finally:
        tmp_path.chmod(0o755)


def test_a_progress_bar_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A folder's name may hold a line end and what controls a terminal."""
    with cache.progress(1, "x\nerror: forged\x1b[2J", "img"):
        pass
    assert "x\\nerror: forged\\x1b[2J:" in capsys.readouterr().err
