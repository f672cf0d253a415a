"""What there is to ingest: files in MVTec layout, in plain folders, or named by a manifest."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import PurePosixPath
from typing import Literal

import pyarrow as pa
import pyarrow.csv as pa_csv

from pipeline.config import StorageSettings
from pipeline.errors import ConfigError, TableError
from pipeline.lake.folder import Folder, split_uri
from pipeline.lake.owned import parquet_table
from pipeline.lake.stores import Entry

Layout = Literal["mvtec", "folder", "csv"]

MANIFESTS = (".csv", ".parquet")
_STORAGE = StorageSettings()


@dataclass(frozen=True)
class SourceImage:
    """One file to ingest; the fields are those of `tables.SOURCE`."""

    image_id: str
    folder: str
    name: str
    version: str
    bytes: int
    group: str
    split: str | None = None
    label: str | None = None
    mask: str | None = None
    captured_at: datetime | None = None

    @property
    def uri(self) -> str:
        """Where the file is: the `source_uri` of its row."""
        return f"{self.folder.rstrip('/')}/{self.name}"


@dataclass(frozen=True)
class Listing:
    """Images in the order of their names, and files that are none, each with the reason."""

    images: list[SourceImage] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def guess_layout(source: str, storage: StorageSettings = _STORAGE) -> Layout:
    """Return the layout of a source by looking at its names.

    Raises:
        ConfigError: if there is nothing there.
    """
    if source.endswith(MANIFESTS):
        return "csv"
    folder = Folder(source, storage)
    entries = folder.find()
    if not entries:
        raise ConfigError(f"{folder.root} holds no file")
    parts = [PurePosixPath(entry.name).parts for entry in entries]
    return "mvtec" if any(p[-3:-1] == ("train", "good") for p in parts) else "folder"


def list_images(
    source: str,
    layout: Layout,
    group: str | None,
    prefixes: Sequence[str] = (),
    storage: StorageSettings = _STORAGE,
) -> Listing:
    """Return what is to be ingested from a source.

    Args:
        source: A folder, or a manifest file.
        layout: How names, labels and masks are found.
        group: Of all images; None takes the folder's or the manifest's own.
        prefixes: Where a manifest's absolute URIs may point.
        storage: How S3 is reached.

    Raises:
        ConfigError: if there is nothing there, or an URI points outside the prefixes.
        TableError: if a manifest has no `uri` column.
    """
    if layout == "csv":
        return _list_manifest(split_uri(source, storage), group, prefixes)
    folder = Folder.at(source, storage)
    entries = folder.find()
    if not entries:
        raise ConfigError(f"{folder.root} holds no file")
    named = group or PurePosixPath(folder.root).name
    if layout == "mvtec":
        return _list_mvtec(folder, entries, group, named)
    images = [SourceImage(e.name, folder.root, e.name, e.version, e.size, named) for e in entries]
    return Listing(images)


def _list_mvtec(
    folder: Folder, entries: Sequence[Entry], group: str | None, default: str
) -> Listing:
    names = {entry.name for entry in entries}
    listing = Listing()
    for entry in entries:
        # [category/] train|test|ground_truth / good|defect type / file
        parts = PurePosixPath(entry.name).parts
        above, split, label = parts[:-3], parts[-3] if len(parts) > 2 else "", parts[-2:-1]  # noqa: PLR2004
        if split == "ground_truth":
            continue
        if split not in ("train", "test"):
            listing.skipped.append(f"{folder.path(entry.name)}: not in train/good or test/TYPE")
            continue
        stem = PurePosixPath(entry.name).stem
        mask = "/".join([*above, "ground_truth", label[0], f"{stem}_mask.png"])
        listing.images.append(
            SourceImage(
                image_id=entry.name,
                folder=folder.root,
                name=entry.name,
                version=entry.version,
                bytes=entry.size,
                group=group or ("/".join(above) if above else default),
                split=split,
                label=label[0],
                mask=mask if mask in names else None,
            )
        )
    return listing


def _list_manifest(
    manifest: tuple[Folder, str], group: str | None, prefixes: Sequence[str]
) -> Listing:
    base, file_name = manifest
    source = base.path(file_name)
    table = _read_manifest(base, file_name)
    if "uri" not in table.column_names:
        raise TableError(f"{source}: a manifest needs column 'uri', it has {table.column_names}")
    allowed = [base.root, *prefixes]
    listing = Listing()
    for number, row in enumerate(table.to_pylist()):
        if _text(row, "uri") is None:
            listing.skipped.append(f"{source}: row {number} has no uri")
            continue
        uris = [uri for uri in (_text(row, "uri"), _text(row, "mask_uri")) if uri is not None]
        located = _locate([_path(base, uri) for uri in uris], allowed)
        if located is None:
            named = "' with mask '".join(uris)
            raise ConfigError(
                f"{source}: '{named}' is outside {base.root} and of image.uri_prefixes "
                f"{list(prefixes)}; add its prefix with --set image.uri_prefixes=[...]"
            )
        folder, (name, *masks) = located
        try:
            entry = Folder(folder, base.storage).entry(name)
        except FileNotFoundError:
            listing.skipped.append(f"{uris[0]}: does not exist")
            continue
        image = _of_manifest_row(row, entry, folder, group or file_name)
        listing.images.append(replace(image, mask=masks[0]) if masks else image)
    return listing


def _text(row: dict[str, object], name: str) -> str | None:
    return None if row.get(name) in (None, "") else str(row[name])


def _of_manifest_row(row: dict[str, object], entry: Entry, folder: str, group: str) -> SourceImage:
    captured = row.get("captured_at")
    return SourceImage(
        image_id=_text(row, "image_id") or str(row["uri"]),
        folder=folder,
        name=entry.name,
        version=entry.version,
        bytes=entry.size,
        group=_text(row, "group") or PurePosixPath(group).stem,
        split=_text(row, "split"),
        label=_text(row, "label"),
        captured_at=captured if isinstance(captured, datetime) else None,
    )


def _read_manifest(base: Folder, file_name: str) -> pa.Table:
    try:
        content = base.read(file_name)
    except FileNotFoundError:
        raise ConfigError(f"{base.path(file_name)} does not exist") from None
    try:
        if file_name.endswith(".parquet"):
            return parquet_table(content)
        strings = dict.fromkeys(
            ("image_id", "uri", "group", "split", "label", "mask_uri"), pa.string()
        )
        options = pa_csv.ConvertOptions(column_types=strings, strings_can_be_null=True)
        return pa_csv.read_csv(io.BytesIO(content), convert_options=options)
    except pa.ArrowInvalid as error:
        raise TableError(f"{base.path(file_name)} cannot be read: {error}") from None


def _path(base: Folder, uri: str) -> str:
    """Return the normalised URI; a relative one is relative to the manifest."""
    if "://" in uri or uri.startswith("/"):
        folder, _, name = uri.rpartition("/")
        return Folder(folder or "/", base.storage).path(name)
    return base.path(uri)


def _locate(paths: Sequence[str], allowed: Sequence[str]) -> tuple[str, list[str]] | None:
    """Return the first allowed folder above all paths, and their names in it."""
    if any(".." in PurePosixPath(path).parts for path in paths):
        return None
    for folder in allowed:
        prefix = folder.rstrip("/") + "/"
        if all(path.startswith(prefix) for path in paths):
            return folder, [path.removeprefix(prefix) for path in paths]
    return None


def shards(images: Sequence[SourceImage], shard_bytes: int) -> Iterator[list[SourceImage]]:
    """Cut images into the contents of Parquet files: of one group, of about `shard_bytes`."""
    for group in sorted({image.group for image in images}):
        shard: list[SourceImage] = []
        size = 0
        for image in images:
            if image.group != group:
                continue
            if shard and size + image.bytes > shard_bytes:
                yield shard
                shard, size = [], 0
            shard.append(image)
            size += image.bytes
        if shard:
            yield shard
