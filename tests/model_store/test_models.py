"""The model folder: what is published is read back, and damage is named, never parsed."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchlake.pipeline.config import ImageSettings, Settings
from patchlake.pipeline.errors import ModelError
from patchlake.pipeline.model_store import models
from patchlake.pipeline.model_store.identity import Identity
from patchlake.pipeline.model_store.models import (
    FileRecord,
    GeometryRecord,
    GroupRecord,
    Manifest,
    Network,
)
from patchlake.pipeline.storage.folder import Folder

ROLES = ["state.safetensors", "index-00000-of-00001.faiss", "provenance.parquet"]


@pytest.fixture
def model(tmp_path: Path) -> Folder:
    return Folder.at(str(tmp_path))


def _manifest(of_run: Settings, groups: dict[str, GroupRecord], **fields: object) -> Manifest:
    return Manifest(
        format=fields.pop("format", models.FORMAT),
        run="run",
        created_at=datetime(2026, 11, 23, 1, 2, 3, 456789, tzinfo=UTC),
        preset=of_run.preset,
        method=of_run.method.name,
        method_options=of_run.method.options(),
        backbone=Network(name="n", layers=(2, 3), weights=None, weights_sha256="0" * 64),
        geometry=GeometryRecord.of(of_run.image),
        groups=groups,
        failed_groups={"ä/..": "no usable image"},
        libraries={"torch": "2.15.0"},
        settings=of_run,
    )


names = st.text(max_size=3)
numbers = st.floats(allow_nan=False, allow_infinity=False)
records = st.builds(
    GroupRecord,
    digest=names,
    images=st.integers(0, 2**40),
    unusable_images=st.just({"missing": 1, "too_large": 2}),
    facts=st.dictionaries(st.sampled_from(["bank_rows", "covering_radius"]), numbers),
    files=st.lists(
        st.builds(FileRecord, role=names, name=names, bytes=st.integers(0), sha256=names),
        max_size=2,
    ),
)
sides = st.integers(1, 999)


@st.composite
def all_settings(draw: st.DrawFn) -> Settings:
    image = {"resize": draw(sides | st.tuples(sides, sides)), "crop": draw(st.none() | sides)}
    options = st.none() | st.booleans() | st.integers() | numbers | names
    method = {"name": draw(names), "option": draw(options)}
    return Settings.model_validate({"seed": draw(sides), "image": image, "method": method})


@given(all_settings(), st.dictionaries(names, records, max_size=2))
@settings(max_examples=50)
def test_a_manifest_is_read_as_it_was_written(of_run, groups):
    model = Folder.at("memory://models")
    manifest = _manifest(of_run, groups)
    models.write_manifest(model, manifest)
    read = models.read_manifest(model)
    assert read == manifest
    # As text: 1 == 1.0 == True, but the fields of a method's dataclass are typed.
    assert str(read.method_options) == str(manifest.method_options)
    assert str(read.settings) == str(manifest.settings)


@given(st.text(), st.dictionaries(st.sampled_from(ROLES), st.binary()))
def test_files_are_read_as_they_were_written(group, contents):
    model = Folder.at("memory://models")
    model.remove("", recursive=True)
    records = models.write_files(model, group, contents)
    assert {record.role: models.read_file(model, record) for record in records} == contents
    assert [record.bytes for record in records] == [len(content) for content in contents.values()]
    assert {entry.name for entry in model.find()} == {record.name for record in records}
    assert all(len(Path(record.name).parts) == 2 for record in records)


def test_another_content_is_another_file_so_that_a_reader_keeps_its_own(model):
    [old] = models.write_files(model, "a", {"state.safetensors": b"old"})
    [new] = models.write_files(model, "a", {"state.safetensors": b"new"})
    assert models.read_file(model, old) == b"old"
    assert models.read_file(model, new) == b"new"
    assert old.name.startswith("g=a/state-")
    assert old.name.endswith(".safetensors")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: bytes([content[0] ^ 1]) + content[1:], "is damaged: .*10 of 10 bytes"),
        (lambda content: content[:-1], "is damaged: .*9 of 10 bytes"),
        (lambda content: content + b"\0", "is damaged: .*11 of 10 bytes"),
        (lambda _: b"", "is damaged: .*0 of 10 bytes"),
        (None, "is missing; "),
    ],
    ids=["one bit", "cut off", "longer", "empty", "missing"],
)
def test_a_file_that_is_not_what_was_written_is_named(model, damage, said):
    [record] = models.write_files(model, "a/b", {"state.safetensors": b"0123456789"})
    if damage is None:
        model.remove(record.name)
    else:
        model.write(record.name, damage(b"0123456789"))
    with pytest.raises(ModelError, match=f"g=a%2Fb/state-[0-9a-f]+.safetensors {said}"):
        models.read_file(model, record)


def test_a_folder_without_a_manifest_is_no_model(model):
    model.write("g=a/state-0.safetensors", b"")
    with pytest.raises(ModelError, match=rf"{model.root} has no model.json: .*run `patchlake fit`"):
        models.read_manifest(model)


def test_a_model_of_another_format_is_refused_with_both_numbers(model):
    models.write_manifest(model, _manifest(Settings(), {}, format=models.FORMAT + 1))
    with pytest.raises(
        ModelError, match=rf"is of format {models.FORMAT + 1}, .* reads {models.FORMAT}"
    ):
        models.read_manifest(model)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda _: b"",
        lambda _: b"[]",
        lambda text: b"\xff" + text,
        lambda text: text.replace(b'"run"', b'"other"'),
        lambda text: text.replace(b'"weights_sha256": "', b'"weights_sha256": 5, "x": "'),
    ],
    ids=["cut off", "empty", "list", "not UTF-8", "lacks a field", "wrong type"],
)
def test_a_damaged_manifest_is_named(model, damage):
    models.write_manifest(model, _manifest(Settings(), {}))
    model.write(models.MANIFEST, damage(model.read(models.MANIFEST)))
    with pytest.raises(ModelError, match=r"/model\.json is damaged or of another format"):
        models.read_manifest(model)


def test_the_digest_of_a_group_is_of_its_arrays_and_not_of_where_they_are(model):
    def digest(seed: int = 0, **changed: bytes) -> str:
        contents = {role: changed.get(role.split(".")[0], b"1") for role in ROLES}
        files = models.write_files(model, "a", contents)
        moved = models.write_files(model, "b", contents)
        identity = Identity.of(_manifest(Settings(seed=seed), {}))
        digest = identity.group_digest(files)
        elsewhere = identity.network.model_copy(update={"weights": "elsewhere"})
        assert digest == replace(identity, network=elsewhere).group_digest(moved[::-1])
        return digest

    assert digest(provenance=b"2") == digest()
    assert len({digest(), digest(state=b"2"), digest(seed=1)}) == 3


def test_a_model_of_before_there_was_a_draft_reads_as_without_and_keeps_its_digest(model):
    files = [FileRecord(role="state.safetensors", name="n", bytes=1, sha256="1" * 64)]
    manifest = _manifest(Settings(), {})
    models.write_manifest(model, manifest)
    old = json.loads(model.read(models.MANIFEST))
    del old["geometry"]["draft"], old["settings"]["image"]["draft"]
    model.write(models.MANIFEST, json.dumps(old).encode())
    read = models.read_manifest(model)
    assert read.geometry.draft is False
    # As commit 32cc728 gave it, the last one before.
    assert Identity.of(read).group_digest(files) == OLD_DIGEST
    drafted = GeometryRecord.of(ImageSettings(draft=True))
    identity = replace(Identity.of(read), geometry=drafted)
    assert identity.group_digest(files) != OLD_DIGEST


OLD_DIGEST = "d0f9a1ba610fdb77c8f36935dd92b409a582306fd22a5caf2b35ed390c465d6d"


def test_a_setting_that_is_gone_does_not_make_a_model_unreadable(model: Folder):
    models.write_manifest(model, _manifest(Settings(), {}))
    content = json.loads(model.read(models.MANIFEST))
    content["settings"]["batch_size"] = 32
    model.write(models.MANIFEST, json.dumps(content).encode())
    assert models.read_manifest(model).settings == Settings()
    content["settings"]["bach_size"] = 32
    model.write(models.MANIFEST, json.dumps(content).encode())
    with pytest.raises(ModelError, match="bach_size"):
        models.read_manifest(model)
