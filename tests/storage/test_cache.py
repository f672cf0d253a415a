"""What a node keeps of a remote model: read once, checked always, gone when the disk is full."""

import os
import shutil
from collections import Counter
from pathlib import Path

import fsspec
import pytest
from safetensors.torch import save_file

from patchlake.pipeline.config import BackboneSettings
from patchlake.pipeline.errors import ModelError
from patchlake.pipeline.features.backbone import load_backbone
from patchlake.pipeline.features.layers import create_network
from patchlake.pipeline.model_store import models
from patchlake.pipeline.storage import cache
from patchlake.pipeline.storage.folder import Folder

ROLE = "state.safetensors"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def remote() -> Folder:
    folder = Folder("memory://test-cache/model")
    folder.remove("", recursive=True)
    return folder


def loading(content: bytes, loads: Counter[str]):
    def load() -> bytes:
        loads["times"] += 1
        return content

    return load


def test_content_is_loaded_once(kept: Path):
    loads: Counter[str] = Counter()
    assert [cache.read("name", loading(b"content", loads)) for _ in range(3)] == [b"content"] * 3
    assert loads["times"] == 1
    assert [path.name for path in kept.iterdir()] == ["name"]
    cache.forget("name")
    cache.read("name", loading(b"content", loads))
    assert loads["times"] == 2


def test_without_a_folder_nothing_is_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(cache.VARIABLE, raising=False)
    loads: Counter[str] = Counter()
    assert [cache.read("name", loading(b"x", loads)) for _ in range(2)] == [b"x", b"x"]
    assert loads["times"] == 2
    cache.forget("name")


def test_a_full_disk_loses_what_was_not_used_for_longest(
    kept: Path, monkeypatch: pytest.MonkeyPatch
):
    for number, name in enumerate("abc"):
        cache.read(name, lambda: bytes(100))
        os.utime(kept / name, (number, number))
    cache.read("a", lambda: bytes(100))

    def disk_usage(path: Path):
        used = sum(file.stat().st_size for file in kept.iterdir())
        return shutil._ntuple_diskusage(500, used, 500 - used)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    # 300 of 500 are used; 250 more, with 100 kept free, cost two of them.
    cache.read("d", lambda: bytes(250))
    assert {path.name for path in kept.iterdir()} == {"a", "d"}


def test_a_remote_model_is_read_once_and_what_the_cache_damaged_again(kept: Path, remote: Folder):
    (record,) = models.write_files(remote, "tile", {ROLE: b"weights"})
    assert models.read_file(remote, record) == b"weights"
    # Gone from the store: only the cache has it.
    remote.remove(record.name)
    assert models.read_file(remote, record) == b"weights"
    (kept / record.sha256).write_bytes(b"rotten!")
    with pytest.raises(ModelError, match="missing"):
        models.read_file(remote, record)
    models.write_files(remote, "tile", {ROLE: b"weights"})
    assert models.read_file(remote, record) == b"weights"


def test_what_is_damaged_in_the_store_is_refused_again_and_again(kept: Path, remote: Folder):
    (record,) = models.write_files(remote, "tile", {ROLE: b"weights"})
    remote.write(record.name, b"damaged")
    for _ in range(2):
        with pytest.raises(ModelError, match="damaged"):
            models.read_file(remote, record)


def test_a_local_model_is_not_copied(kept: Path, tmp_path: Path):
    (record,) = models.write_files(Folder(str(tmp_path)), "tile", {ROLE: b"weights"})
    assert models.read_file(Folder(str(tmp_path)), record) == b"weights"
    assert not kept.exists()


def test_other_weights_under_the_same_uri_are_other_weights(kept: Path, tmp_path: Path):
    uri = "memory://test-cache/weights.safetensors"
    name = "resnet10t.c3_in1k"
    digests = []
    for seed in (0, 1, 1):
        network = create_network(BackboneSettings(name=name, layers=(1,)), seed, pretrained=False)
        save_file(dict(network.state_dict()), tmp_path / "file")
        with fsspec.open(uri, "wb") as file:
            file.write((tmp_path / "file").read_bytes())
        settings = BackboneSettings(name=name, layers=(1,), weights=uri)
        digests.append(load_backbone(settings, seed=2).weights_sha256)
    assert digests[0] != digests[1] == digests[2]
