"""Every Arrow schema of patchlake, once: the public tables, and the rows between stages.

Each field says what it holds in its `doc`; the column lists of docs/tables.md are made from here
(`python -m patchlake.pipeline.tables`), and a test holds the two together. A field is non-null
unless it is declared otherwise. Adding a nullable column keeps a table readable; anything else
needs a new `OUTPUT_VERSION`.
"""

import re

import pyarrow as pa

from patchlake.pipeline.errors import TableError

# Raised when code changes results: it is part of every fragment's key.
OUTPUT_VERSION = 7


def _field(name: str, kind: pa.DataType, doc: str) -> pa.Field:
    return pa.field(name, kind, nullable=False, metadata={"doc": doc})


def _optional(name: str, kind: pa.DataType, doc: str) -> pa.Field:
    return pa.field(name, kind, nullable=True, metadata={"doc": doc})


_UTC = pa.timestamp("us", tz="UTC")

IMAGES = pa.schema(
    [
        _field("image_id", pa.string(), "name of the image; for ingested files the path in SOURCE"),
        _optional("image", pa.binary(), "the encoded file (JPEG, PNG, ...), untouched"),
        _optional("uri", pa.string(), "where the encoded file is, when `image` is null"),
        _field("group", pa.string(), "product or station: the images that share a model"),
        _optional("split", pa.string(), "`train`, `test` or null"),
        _optional("label", pa.string(), "`good`, a defect type, or null for unknown"),
        _optional("mask", pa.binary(), "PNG of the defect, white on black, in the upright image"),
        _optional("captured_at", _UTC, "when the picture was taken"),
        _optional("source_uri", pa.string(), "the file that was ingested"),
        _optional("source_version", pa.string(), "etag, or size and time, of that file"),
        _optional("sha256", pa.string(), "of the encoded file"),
        _optional("mask_version", pa.string(), "etag, or size and time, of the mask's file"),
        _optional("part_id", pa.string(), "the piece that the picture is of, or its lot"),
    ]
)

# Of other people's tables, named by `columns.roi`. `ingest` writes none.
ROI = _optional("roi", pa.binary(), "mask of what counts, white on black, in the upright image")

REGION = pa.struct(
    [
        ("x", pa.int32()),
        ("y", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("area", pa.int64()),
        ("peak", pa.float32()),
        ("centre_x", pa.float32()),
        ("centre_y", pa.float32()),
    ]
)

# A part of an image, in whole pixels of the upright image.
BOX = pa.struct([(name, pa.int32()) for name in ("x", "y", "width", "height")])

# Of an image as the network sees it: what nights are compared by. Null where no model sees it, and
# in tables of before.
_APPEARANCE = (
    _optional("brightness", pa.float32(), "mean grey level of the model's input, 0 to 255"),
    _optional(
        "sharpness",
        pa.float32(),
        "of the model's input: what is finest in it, as a share of all that varies from pixel to "
        "pixel",
    ),
    _optional(
        "embedding",
        pa.list_(pa.float32()),
        "of the whole image, 32 numbers; to be compared within one `model_id`",
    ),
)
_THUMBNAIL = _optional(
    "thumbnail", pa.binary(), "16 x 16 grey levels of the model's input, row by row"
)

SCORES = pa.schema(
    [
        _field("image_id", pa.string(), "as in the images table"),
        _field("source_path", pa.string(), "Parquet file of the image, relative to IMAGES"),
        _field("source_row", pa.int64(), "row in that file, from 0; with the path, the identity"),
        _field("group", pa.string(), "as in the images table"),
        _optional("part_id", pa.string(), "as in the images table"),
        _field(
            "status",
            pa.string(),
            "`ok`, or why there is no score: `unreadable`, `too_large`, `unsupported`, `missing`, "
            "`no_model`",
        ),
        _optional("error", pa.string(), "what was wrong, in words; null when ok"),
        _optional("image_score", pa.float32(), "larger is worse; raw distance, never clamped"),
        _optional(
            "p_value",
            pa.float32(),
            "how rarely a good image of a new part scores so high; null: no calibration",
        ),
        _optional("is_anomalous", pa.bool_(), "above `threshold`; null where there is none"),
        _optional(
            "threshold",
            pa.float32(),
            "of `image_score`, for `verdict.false_alarm_rate`; null: no calibration",
        ),
        _optional("anomaly_map", pa.list_(pa.float32()), "distance of each patch, row by row"),
        _optional("map_height", pa.int32(), "rows of the patch grid"),
        _optional("map_width", pa.int32(), "columns of the patch grid"),
        _optional(
            "pixel_threshold",
            pa.float32(),
            "of the smoothed map, for the same rate; null where there is none",
        ),
        _optional(
            "heatmap_path",
            pa.string(),
            "JPEG: colour and outlines over the image, relative to SCORES",
        ),
        _optional(
            "regions",
            pa.list_(REGION),
            "where an anomalous image is so, the largest first, in pixels of the upright image; "
            "empty: not anomalous; null: no verdict, or no map",
        ),
        _optional("width", pa.int32(), "pixels of the upright image"),
        _optional("height", pa.int32(), "pixels of the upright image"),
        *_APPEARANCE,
        _THUMBNAIL,
        _field("model_id", pa.string(), "digest of the group's model; empty for `no_model`"),
        _field("scored_at", _UTC, "the run's time: one value for all of its rows"),
    ]
)

# One row a piece that was photographed: not to be confused with the parts that a score table
# consists of.
PARTS = pa.schema(
    [
        _field("group", pa.string(), "as in the scores"),
        _field("part_id", pa.string(), "as in the scores; one of another group is another one"),
        _field("images", pa.int64(), "rows of the scores that are of it"),
        _field("scored", pa.int64(), "those of them that have an `image_score`"),
        _field("tested", pa.int64(), "those of them that have a `p_value`"),
        _optional(
            "p_value",
            pa.float32(),
            "`tested` times the smallest p_value of its images, 1 at the most (Bonferroni); null: "
            "none has one",
        ),
        _optional(
            "is_anomalous",
            pa.bool_(),
            "`worst_p_value` is at most `verdict.false_alarm_rate / tested`; null: no p_value",
        ),
        _optional(
            "worst_image_id",
            pa.string(),
            "its image of the smallest p_value, and of those the highest score; null: none is "
            "scored",
        ),
        _optional("worst_source_path", pa.string(), "that image's `source_path`"),
        _optional("worst_source_row", pa.int64(), "that image's `source_row`"),
        _optional("worst_image_score", pa.float32(), "that image's `image_score`"),
        _optional("worst_p_value", pa.float32(), "that image's `p_value`"),
        _field("model_id", pa.string(), "that image's `model_id`; else of one of its images"),
        _field("first_scored_at", _UTC, "the earliest `scored_at` of its images"),
        _field("last_scored_at", _UTC, "the latest `scored_at` of its images"),
    ]
)

PROVENANCE = pa.schema(
    [
        _field("bank_row", pa.int64(), "row of the memory bank, from 0"),
        _field("image_id", pa.string(), "training image that the patch is from"),
        _field("source_path", pa.string(), "Parquet file of that image, relative to IMAGES"),
        _field("source_row", pa.int64(), "row in that file, from 0"),
        _field("y", pa.int32(), "row in the patch grid; grids of turned copies lie below it"),
        _field("x", pa.int32(), "column in the patch grid"),
        _optional("source_version", pa.string(), "etag, or size and time, of that file"),
    ]
)

# One row an image that was ever in a group's model, in the order in which they joined. Those that
# were not withdrawn are numbered in this order.
TRAINING_IMAGES = pa.schema(
    [
        _field("image_id", pa.string(), "as in the images table"),
        _field("source_path", pa.string(), "Parquet file of the image, relative to IMAGES"),
        _field("source_row", pa.int64(), "row in that file, from 0"),
        _field("source_version", pa.string(), "etag, or size and time, of that file"),
        _field("joined", pa.int32(), "step of the model's lineage, from 0, that added it"),
        _optional("left", pa.int32(), "step that withdrew it; null: it is in the model"),
        _optional("score", pa.float32(), "its score as if it were new, if calibrated on it"),
        _optional("peak", pa.float32(), "highest point of its smoothed map, likewise"),
        _optional("patch_mean", pa.float64(), "mean of its anomaly map, likewise"),
        _optional("patch_std", pa.float64(), "standard deviation of its anomaly map, likewise"),
        _optional(
            "sha256", pa.string(), "of the encoded file; null: it joined before that was kept"
        ),
        _optional("part_id", pa.string(), "as in the images table"),
        _THUMBNAIL,
        _optional("part", pa.string(), "images with the same one are taken for shots of one part"),
        _optional("part_score", pa.float32(), "its score without all images of its part"),
        _optional("part_peak", pa.float32(), "highest point of its smoothed map, likewise"),
        *_APPEARANCE,
    ]
)

# One row a training image that looks anomalous to the model, or looked so to a robust fit.
SUSPECTS = pa.schema(
    [
        _field("group", pa.string(), "as in the images table"),
        _field("image_id", pa.string(), "as in the images table"),
        _field("source_path", pa.string(), "Parquet file of the image, relative to IMAGES"),
        _field("source_row", pa.int64(), "row in that file, from 0"),
        _optional("part_id", pa.string(), "as in the images table"),
        _field("score", pa.float32(), "its score without all images of its part"),
        _field(
            "deviation",
            pa.float64(),
            "how many standard deviations the score's logarithm lies above the group's median",
        ),
        _field("is_suspect", pa.bool_(), "`deviation` is above 3.5"),
        _field("left_out", pa.bool_(), "a robust fit has left it out of the model"),
        _optional("sha256", pa.string(), "of the encoded file; null: not known"),
        _optional(
            "picture",
            pa.binary(),
            "the upright image as a JPEG, its longer side 192 pixels at most; null: not among the "
            "first 100 of its group, or not to be read any more",
        ),
    ]
)

# One row a decision of a person (or of whoever wrote a CSV) on one image. Rows are only ever added:
# whoever thinks again adds another one.
REVIEWS = pa.schema(
    [
        _field("image_id", pa.string(), "as in the images table"),
        _optional("group", pa.string(), "as in the images table; null: not said"),
        _field("verdict", pa.string(), "`defective`, `good`, or `unsure`"),
        _optional(
            "regions",
            pa.list_(BOX),
            "where the defect is, as drawn, in pixels of the upright image; null: not drawn",
        ),
        _field("reviewer", pa.string(), "who decided"),
        _field("reviewed_at", _UTC, "when"),
        _optional("root", pa.string(), "the images table; null: not said"),
        _optional("source_path", pa.string(), "Parquet file of the image, relative to it"),
        _optional("source_row", pa.int64(), "row in that file, from 0"),
        _optional("sha256", pa.string(), "of the encoded file that was looked at"),
        _optional("scores", pa.string(), "the score table that was reviewed; null: none was"),
        _optional("version", pa.string(), "of its rows"),
        _optional("model_id", pa.string(), "as in the scores"),
        _optional("image_score", pa.float32(), "as in the scores"),
        _optional("p_value", pa.float32(), "as in the scores"),
        _optional("is_anomalous", pa.bool_(), "as in the scores"),
    ]
)

# One row an image: what its reviews come to. The last review that tells a column is told.
DECIDED = pa.schema(
    [
        *(REVIEWS.field(name) for name in ("image_id", "group")),
        _field("verdict", pa.string(), "`defective`, `good`, `unsure`, or `disputed`"),
        _field("reviewers", pa.int64(), "how many people decided, as far as they were sure"),
        *(field for field in REVIEWS if field.name not in ("image_id", "group", "verdict")),
    ]
)

# One row a group and night of one version of a score table.
DRIFT = pa.schema(
    [
        _field("group", pa.string(), "as in the scores"),
        _field("night", pa.string(), "value of the hive key that tells it, or day of `scored_at`"),
        _field("model_id", pa.string(), "as in the scores"),
        _field("images", pa.int64(), "rows of the scores"),
        _field("unreadable", pa.int64(), "those of them without a score, but for `no_model`"),
        _field("unreadable_rate", pa.float64(), "their share of `images`"),
        _field("scored", pa.int64(), "those of them that have an `image_score`"),
        _field("tested", pa.int64(), "those of them that have a `p_value`"),
        _optional("q05", pa.float32(), "5 % of the image scores are at most that"),
        _optional("q25", pa.float32(), "likewise 25 %"),
        _optional("q50", pa.float32(), "likewise 50 %"),
        _optional("q75", pa.float32(), "likewise 75 %"),
        _optional("q95", pa.float32(), "likewise 95 %"),
        _optional("q99", pa.float32(), "likewise 99 %"),
        _optional("alarms", pa.int64(), "images that are anomalous; null: none has a verdict"),
        _optional("alarm_rate", pa.float64(), "their share of `tested`"),
        _optional("alarm_rate_low", pa.float64(), "lower end of its interval of 95 %"),
        _optional("alarm_rate_high", pa.float64(), "upper end of it"),
        _optional(
            "shift",
            pa.float64(),
            "how far the mean image lies from that of the training images, in standard deviations "
            "of a part; null: the model keeps nothing to compare with",
        ),
        _optional("brightness", pa.float64(), "mean grey level (0 to 255), less that in training"),
        _optional("sharpness", pa.float64(), "of edges, as a share of that in training"),
        _field("parts", pa.int64(), "parts of the night that are compared, 256 at most"),
        _field("trained_parts", pa.int64(), "parts that they are compared with, 1,000 at most"),
        _optional("p_value", pa.float64(), "how rarely a night without drift moves so far"),
        _optional("is_drift", pa.bool_(), "found by the test over all rows of the table"),
        _optional(
            "signals",
            pa.list_(pa.string()),
            "what shows it, of `brightness`, `sharpness`, `embedding` and `scores`; empty: no "
            "drift; null: not tested",
        ),
    ]
)

# One row an image that a model was trained on, beside its scores.
TRAINED = pa.schema(
    [
        _field("image_id", pa.string(), "as in the images table"),
        _field("root", pa.string(), "the images table; empty: not known"),
        _field("source_path", pa.string(), "Parquet file of the image, relative to it"),
        _field("source_row", pa.int64(), "row in that file, from 0"),
        _field("source_version", pa.string(), "etag, or size and time, of that file"),
        _optional("sha256", pa.string(), "of the encoded file; null: not known"),
        _optional("part", pa.string(), "images with the same one are taken for shots of one part"),
        _optional(
            "part_score", pa.float32(), "its score without all images of its part, of one model"
        ),
        # Of an ensemble, those of its first member's images, as that member sees them.
        *_APPEARANCE,
        _THUMBNAIL,
    ]
)

PLAN = pa.schema(
    [
        _field("key", pa.string(), "names the part; changes with anything that changes its bytes"),
        _field("path", pa.string(), "Parquet file, relative to IMAGES"),
        _field("version", pa.string(), "etag, or size and time, of the file"),
        _field("group", pa.string(), "all rows of a fragment are of one group"),
        _field("row_groups", pa.list_(pa.int32()), "row groups that hold the fragment"),
        _field("start", pa.int64(), "first row, among the group's rows in these row groups"),
        _field("images", pa.int64(), "number of rows"),
    ]
)

# One row a part, in the state of a compacted table.
COMPACTED = pa.schema(
    [
        _field("file", pa.string(), "Parquet file of the compacted table, relative to it"),
        _field("part", pa.string(), "part whose rows it holds, relative to SCORES"),
        _field("bytes", pa.int64(), "size of the part"),
    ]
)

# One row, between the stages of one fragment. The pixel and map arrays travel as one buffer, so
# that Ray hands them over without a copy.
FRAGMENT_BATCH = pa.schema(
    [
        _field("fragment", pa.string(), "the fragment, as JSON"),
        _field("rows", pa.large_binary(), "Arrow IPC stream, one row an image"),
        _field(
            "array", pa.large_binary(), "uint8 pixels or float32 maps of the images that are ok"
        ),
        _field("dtype", pa.string(), "of `array`"),
        _field("shape", pa.list_(pa.int64()), "of `array`"),
        _optional("failure", pa.string(), "why the fragment was given up"),
        _field("seconds", pa.map_(pa.string(), pa.float64()), "time spent, by stage"),
        _field("nodes", pa.map_(pa.string(), pa.string()), "node that did it, by stage"),
        _field("attempts", pa.int32(), "how often a stage tries it"),
    ]
)

# One row, a file to be ingested.
SOURCE = pa.schema(
    [
        _field("image_id", pa.string(), "see IMAGES"),
        _field("folder", pa.string(), "URI of the folder that `name` and `mask` are relative to"),
        _field("name", pa.string(), "the image file"),
        _field("version", pa.string(), "etag, or size and time"),
        _field("bytes", pa.int64(), "size of the image file"),
        _field("group", pa.string(), "see IMAGES"),
        _optional("split", pa.string(), "see IMAGES"),
        _optional("label", pa.string(), "see IMAGES"),
        _optional("mask", pa.string(), "the mask's file"),
        _optional("captured_at", _UTC, "see IMAGES"),
        _optional("mask_version", pa.string(), "see IMAGES"),
        _optional("part_id", pa.string(), "see IMAGES"),
        _optional("masked_file", pa.string(), "a file of IMAGES that has the mask"),
        _optional("masked_row", pa.int64(), "the row that has it"),
    ]
)

# One row, the files that become one Parquet file.
PACK = pa.schema(
    [
        _field("target", pa.string(), "name of the Parquet file, relative to IMAGES"),
        _field("sources", pa.large_binary(), "Arrow IPC stream of schema SOURCE"),
    ]
)

_LEFT_OUT = pa.struct([("why", pa.string()), ("line", pa.string()), ("uri", pa.string())])
PACK_RESULT = pa.schema(
    [
        _field("target", pa.string(), "name of the Parquet file"),
        _field("images", pa.int64(), "rows written"),
        _field("bytes", pa.int64(), "size of the encoded images"),
        _field("skipped", pa.list_(_LEFT_OUT), "files that are left out"),
        _field("notes", pa.list_(pa.string()), "masks that are not used, each with the reason"),
    ]
)

# One row, the outcome of one fragment: all that comes back to the driver.
FRAGMENT_RESULT = pa.schema(
    [
        _field("key", pa.string(), "of the fragment"),
        _field("path", pa.string(), "of the fragment"),
        _field("planned", pa.int64(), "number of its rows"),
        _field("statuses", pa.map_(pa.string(), pa.int64()), "images by status"),
        _field("duplicates", pa.int64(), "image_ids that occur more than once in the fragment"),
        _optional("failure", pa.string(), "why the fragment was given up"),
        _field("seconds", pa.map_(pa.string(), pa.float64()), "time spent, by stage"),
        _field("nodes", pa.map_(pa.string(), pa.string()), "node that did it, by stage"),
    ]
)


def require_columns(schema: pa.Schema, wanted: dict[str, pa.Field], where: str) -> None:
    """Raise one `TableError` that names every column that is absent or of a type we cannot read.

    Args:
        schema: What the file has.
        wanted: Column name in the file -> the field of ours that it stands for.
        where: The file, for the message.
    """
    faults = []
    for name, field in wanted.items():
        found = type_of(schema, name)
        if found is None:
            near = ", ".join(schema.names)
            faults.append(
                f"column '{name}' ({field.name}) is missing; the file has: {near}. "
                f"Map it with --set columns.{field.name}=NAME"
            )
        elif not _readable_as(found, field):
            faults.append(f"column '{name}' is {found}, {field.name} needs {field.type}. ")
            if pa.types.is_struct(found):
                inner = [f"{name}.{part.name}" for part in found if _readable_as(part.type, field)]
                faults[-1] += f"Fields that fit: {', '.join(inner) or 'none'}. "
            faults[-1] += f"Map another with --set columns.{field.name}=NAME"
    if faults:
        raise TableError(f"{where}: " + "; ".join(faults))


def type_of(schema: pa.Schema, name: str) -> pa.DataType | None:
    """Return the type of a column, or of a struct's field (`image.bytes`); None if there is none.

    A column whose own name has a dot goes before a field.
    """
    if name in schema.names:
        return schema.field(schema.names.index(name)).type
    first, *inner = name.split(".")
    found: pa.DataType | None = None
    if schema.names.count(first) == 1:
        found = schema.field(first).type
    for part in inner:
        if found is None or not pa.types.is_struct(found) or found.get_field_index(part) < 0:
            return None
        found = found.field(part).type
    return found


def is_binary(found: pa.DataType) -> bool:
    """Return whether values are bytes, in whatever form a writer chooses, or all null."""
    types = pa.types
    if types.is_dictionary(found):
        found = found.value_type
    forms = (types.is_null, types.is_binary, types.is_large_binary, types.is_binary_view)
    return any(form(found) for form in forms)


def is_text(found: pa.DataType) -> bool:
    """Return whether values are text, in whatever form a writer chooses."""
    types = pa.types
    if types.is_dictionary(found):
        found = found.value_type
    return bool(
        types.is_string(found) or types.is_large_string(found) or types.is_string_view(found)
    )


def has_text(found: pa.DataType) -> bool:
    """Return whether values of a type have one spelling as text (`reading.values.as_text`).

    Numbers do where they are whole, and bytes where they are UTF-8.
    """
    types = pa.types
    if types.is_dictionary(found):
        found = found.value_type
    if isinstance(found, pa.BaseExtensionType):
        return bool(found == pa.uuid() or has_text(found.storage_type))
    whole = types.is_decimal(found) and found.scale == 0
    forms = (types.is_boolean, types.is_integer, types.is_floating, types.is_date)
    return is_text(found) or is_binary(found) or bool(whole) or any(form(found) for form in forms)


def _readable_as(found: pa.DataType, field: pa.Field) -> bool:
    """Other writers choose other forms of one type, and null where there is no value."""
    types, wanted = pa.types, field.type
    if types.is_null(found):
        return True
    if types.is_string(wanted):
        return is_text(found) if field.name in _PLACES else has_text(found)
    if types.is_binary(wanted):
        return is_binary(found)
    if types.is_dictionary(found):
        found = found.value_type
    both_times = types.is_timestamp(found) and types.is_timestamp(wanted)
    return bool(found == wanted or both_times)


# Text that names a place is never spelled as a number.
_PLACES = ("uri",)


def markdown(schema: pa.Schema) -> str:
    """Return the table of columns that docs/tables.md shows."""
    lines = ["| column | type | what |", "|---|---|---|"]
    for field in schema:
        kind = re.sub(r"\bfloat\b", "float32", str(field.type)).replace("item: ", "")
        optional = "?" if field.nullable else ""
        lines.append(f"| `{field.name}` | {kind}{optional} | {field.metadata[b'doc'].decode()} |")
    return "\n".join(lines)


if __name__ == "__main__":
    for title, table in (
        ("images", IMAGES),
        ("scores", SCORES),
        ("parts", PARTS),
        ("suspects", SUSPECTS),
        ("reviews", REVIEWS),
        ("drift", DRIFT),
    ):
        print(f"**{title}**\n\n{markdown(table)}\n")  # noqa: T201
