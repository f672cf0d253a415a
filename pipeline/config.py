"""One typed tree of settings, from a preset, a YAML file, `--set a.b=c` and flags.

Each source beats the one before it. An unknown name is an error that says the nearest known one;
`method.*` beyond `method.name` belongs to the method's own dataclass (`pipeline.methods`).
"""

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

import yaml
from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.presets import PRESETS
from patchlake.pipeline.shown import refused, shown, value_shown, without_secrets
from patchlake.pipeline.words import plain

Scalar = bool | int | float | str | None
# timm's `out_indices`, or names of a network's modules.
Layers = tuple[Annotated[int, Field(ge=0)], ...] | tuple[str, ...]
# As Pillow names them; `pipeline.images.formats` says why some are not read unless asked for.
ImageFormat = Literal["JPEG", "PNG", "TIFF", "BMP", "WEBP", "PPM", "GIF", "JPEG2000"]
# Each heatmap a file, or all of a fragment in a zip (`pipeline.score_table.packed`).
HeatmapStore = Literal["files", "packed"]
# Which images a heatmap is drawn of.
Heatmaps = Literal["all", "anomalous", "none"]
# Of a fragment, whose pictures are in memory until they are put: 120 MB at some 30 KB each, and
# 3.2 GB would be the most if all were noise of 512 x 512 pixels.
MOST_PACKED = 4096
# Of a model's input of the photo's own shape: by default, and at the most. The network holds some
# hundred numbers for each pixel that goes through it at once; of what goes through it in tiles, the
# feature maps of the whole are held: 4 numbers of each pixel with lite0, and 20 with WideResNet-50.
USUAL_PIXELS, MOST_PIXELS, MOST_TILED_PIXELS = 448 * 448, 2048 * 2048, 2**25
# In widths and heights of the upright picture, from its upper left corner.
Place = Annotated[float, Field(ge=0, le=1)]
Polygon = Annotated[tuple[tuple[Place, Place], ...], Field(min_length=3)]
# Polygons, or the path or URI of a mask.
Interest = Annotated[tuple[Polygon, ...], Field(min_length=1)] | Annotated[str, Field(min_length=1)]
_INTEREST: TypeAdapter[Interest] = TypeAdapter(Interest)
# A nested mapping, as YAML gives it, before it is checked.
Raw = Mapping[str, object]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TileSettings(_Frozen):
    """How a model's input is cut for the network, in pixels of that input."""

    # Of a square tile; an input that is no longer along a side is not cut along it.
    size: Annotated[int, Field(ge=32, le=2048)]
    # Of two neighbours, at least.
    overlap: Annotated[int, Field(ge=0)]

    @field_validator("overlap")
    @classmethod
    def _is_a_part(cls, overlap: int, info: ValidationInfo) -> int:
        size = info.data.get("size", 2 * overlap)
        if 2 * overlap > size:
            raise ValueError(f"{overlap} is more than half of a tile's {size} pixels; overlap less")
        return overlap


class ImageSettings(_Frozen):
    """From an encoded file to the pixels that the backbone sees."""

    # An integer is the shorter side; a pair [height, width] squashes. The whole image by default:
    # a crop hides defects at the border (docs/architecture.md, "Geometry").
    # `auto`: the shape of the group's photos, in `pixels` at the most (`images.shapes`).
    resize: PositiveInt | tuple[PositiveInt, PositiveInt] | Literal["auto"] = (224, 224)
    crop: PositiveInt | None = None
    # Of inputs that are too large for the network, or whose detail it would lose. Fixed in a model.
    tile: TileSettings | None = None
    # Of the model's input where `resize` is `auto`; None: `USUAL_PIXELS`, and with tiles
    # `MOST_TILED_PIXELS`. Fixed in a model.
    pixels: Annotated[int, Field(ge=1, le=MOST_TILED_PIXELS)] | None = None
    # 100 megapixels decode to 300 MB of RGB.
    max_pixels: PositiveInt = 100_000_000
    max_bytes: PositiveInt = 64 * 2**20
    # Of processor time, of one image. 100 megapixels take 2 to 8 s (a progressive JPEG is slowest).
    max_seconds: Annotated[float, Field(gt=0, le=3600)] = 20.0
    # Kinds of files that are decoded; others are `unsupported`.
    formats: Annotated[tuple[ImageFormat, ...], Field(min_length=1)] = (
        "JPEG",
        "PNG",
        "TIFF",
        "BMP",
        "WEBP",
        "PPM",
    )
    # Of 16-bit grey, how many bits carry light: 10 or 12 of most machine cameras. None: all 16,
    # and an image that would fit into 12 is refused. Fixed in a model.
    bits: Annotated[int, Field(ge=8, le=16)] | None = None
    # JPEG at a half, a quarter or an eighth of its sides, where at least twice the resized sides
    # are left: for photos far larger than the model's input. Scores change. Fixed in a model.
    draft: bool = False
    # A `uri` cell is read only below one of these: a table must not be able to name any file.
    uri_prefixes: tuple[str, ...] = ()
    # Group -> what of its pictures counts. Fixed in a model. Fractions, since a camera that is
    # replaced has other pixels, and still sees the part at the same place.
    roi: dict[str, Interest] = {}

    @field_validator("tile")
    @classmethod
    def _cuts_something(
        cls, tile: TileSettings | None, info: ValidationInfo
    ) -> TileSettings | None:
        resize = info.data.get("resize")
        longest = max(resize) if isinstance(resize, tuple) else 0
        if tile is not None and resize != "auto" and longest <= tile.size:
            raise ValueError(
                f"image.resize {resize} makes inputs that are no larger than a tile of {tile.size} "
                "pixels; set image.resize=auto, or a larger pair"
            )
        return tile

    @field_validator("pixels")
    @classmethod
    def _of_own_shapes(cls, pixels: int | None, info: ValidationInfo) -> int | None:
        if pixels is not None and info.data.get("resize") != "auto":
            raise ValueError(
                f"image.resize says how large inputs are; {pixels} pixels bound those of the "
                "photo's own shape: set image.resize=auto, too, or leave it out"
            )
        if pixels is not None and pixels > MOST_PIXELS and info.data.get("tile") is None:
            raise ValueError(
                f"{MOST_PIXELS} pixels are the most that go through the network at once; set "
                "image.tile={size: 512, overlap: 128} to cut inputs into tiles, or fewer pixels"
            )
        return pixels

    @property
    def own_pixels(self) -> int:
        """How many pixels an input of the photo's own shape has, at the most."""
        usual = USUAL_PIXELS if self.tile is None else MOST_TILED_PIXELS
        return usual if self.pixels is None else self.pixels

    @field_validator("crop")
    @classmethod
    def _of_a_square(cls, crop: int | None, info: ValidationInfo) -> int | None:
        if crop is not None and info.data.get("resize") == "auto":
            raise ValueError(
                f"image.resize=auto takes the whole photo, and {crop} pixels would be cut out of "
                "it: leave one of the two out"
            )
        return crop

    @field_validator("roi", mode="before")
    @classmethod
    def _says_what_counts(cls, roi: object) -> object:
        """Say it once: what pydantic says of each corner by each way to read it fills a screen."""
        if not isinstance(roi, Mapping):
            raise ValueError("write {GROUP: REGION, ...}")  # noqa: TRY004 - pydantic takes these
        for group, said in roi.items():
            try:
                _INTEREST.validate_python(said)
            except ValidationError:
                raise ValueError(
                    f"of group {shown(str(group))} it is neither polygons nor the path of a mask: "
                    "write [[[x, y], [x, y], [x, y], ...], ...], x and y from 0 to 1 in widths and "
                    "heights of the picture, not in pixels"
                ) from None
        return roi


class BackboneSettings(_Frozen):
    """The frozen network: its name, where its weights are, and the layers that are read."""

    # `lite0`, `lite1`, `lite2`, whose weights are installed (features/packaged.py), or a timm tag.
    name: str = "lite0"
    # None: the package, or the timm hub. "untrained": random, seeded. Else a path or URI of a
    # safetensors file.
    weights: str | None = None
    # timm's `out_indices` (2 and 3 are layer2 and layer3 of a ResNet, 11 the last block of a
    # ViT-S), or names of modules: `bn1`, `blocks.0`. None: the method's own.
    layers: Annotated[Layers, Field(min_length=1)] | None = None
    # bfloat16 takes half the time where the processor multiplies it: that is `auto`, which is
    # float32 elsewhere. A model keeps the one that it was fitted in.
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    @field_validator("layers")
    @classmethod
    def _named_once(cls, layers: Layers | None) -> Layers | None:
        if layers is not None and len(set(layers)) < len(layers):
            raise ValueError(f"{list(layers)} names a layer twice; name each once")
        return layers


class MethodSettings(BaseModel):
    """The method's name; the other names are the fields of its dataclass."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Scalar]

    name: str = "patchcore"

    def options(self) -> dict[str, Scalar]:
        """Return what is set beside the name."""
        return dict(self.__pydantic_extra__)


class IndexSettings(_Frozen):
    """How the memory bank is stored and searched."""

    kind: Literal["exact", "hnsw", "ivf"] = "exact"
    # efSearch of HNSW (64) or nprobe of IVF (16); None: those.
    effort: PositiveInt | None = None
    # An approximate index that finds the nearest row less often, of held-out patches, is refused.
    min_recall: float = Field(default=0.99, ge=0, le=1)
    # One file of the bank stays well under what object stores take in a single put.
    shard_bytes: PositiveInt = 256 * 2**20


class ScoreSettings(_Frozen):
    """What a scoring run writes beside the numbers."""

    # Of every image, or of those that are anomalous; where a group has no verdicts, of all.
    heatmaps: Heatmaps = "anomalous"
    # A file an image, or one a fragment: a million pictures a night are a million puts.
    heatmap_store: HeatmapStore = "files"
    # Fixes the rows' time; else it is the time at which the run was first started.
    scored_at: AwareDatetime | None = None
    # catalog.namespace.table that the parts are published in; they do not depend on it.
    iceberg_table: str | None = None


class VerdictSettings(_Frozen):
    """What is called anomalous. A model's own are used where none are named."""

    # Share of good images of new parts that may be called anomalous, at the most.
    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)] = 0.01

    def over(self, fitted: "VerdictSettings") -> "VerdictSettings":
        """Return a model's settings, with those that the user has named in their place."""
        named = {name: getattr(self, name) for name in self.model_fields_set}
        return fitted.model_copy(update=named)


def _words(value: object) -> object:
    """Return a setting's words as text: a 0, true or a single word from YAML are words as well."""
    values = value if isinstance(value, list | tuple | set) else [value]
    return tuple(
        str(one).lower() if isinstance(one, bool) else f"{one:g}" if _is_number(one) else one
        for one in values
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
# The fields of `ColumnSettings` that say what values mean, and not where they are.
VOCABULARY = ("good_labels", "test_splits", "train_splits")


class ColumnSettings(_Frozen):
    """Names of our columns in other people's tables, and columns to pass through to the scores."""

    image_id: str = "image_id"
    image: str = "image"
    uri: str = "uri"
    group: str = "group"
    split: str = "split"
    label: str = "label"
    mask: str = "mask"
    # Images with the same one show one piece; a lot or a time will do as well. Verdicts are
    # calibrated part by part.
    part_id: str = "part_id"
    # A mask of each image that says what of it counts; "": there is none. Nothing is taken for one
    # by its name alone, since what it hides is not looked at.
    roi: str = ""
    extra: tuple[str, ...] = ()
    # The group of all images of a table that has none: neither a column nor a folder names it.
    one_group: str | None = None
    # What those columns say (`lake.selection`), compared as `pipeline.words` does. A label
    # that is none of these is a type of defect; a split of neither list is refused.
    good_labels: Words = ("good", "ok", "normal", "pass")
    test_splits: Words = (
        *("test", "testing", "val", "valid", "validation"),
        *("eval", "evaluation", "dev", "holdout", "hold-out"),
    )
    # And a null: a table without splits is there to train on.
    train_splits: Words = ("train", "training")

    @field_validator("train_splits")
    @classmethod
    def _not_both(cls, train: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        tests = {plain(word) for word in info.data.get("test_splits", ())}
        both = [word for word in train if plain(word) in tests]
        if both:
            raise ValueError(f"{both} is in columns.test_splits too; set both lists")
        return train

    @property
    def renamed(self) -> dict[str, str]:
        """Return those of our columns that are called otherwise here: our name -> theirs.

        One that is called nothing, "", is said to be nowhere.
        """
        names = ("image_id", "image", "uri", "group", "split", "label", "mask", "part_id")
        called = {name: str(getattr(self, name)) for name in names}
        named = {name: theirs for name, theirs in called.items() if theirs not in ("", name)}
        # Of this one, the name is no default either where it is ours.
        return named | ({"roi": self.roi} if self.roi else {})

    @property
    def vocabulary(self) -> dict[str, list[str]]:
        """Return what decides which rows are trained on, and no score depends on."""
        return {name: list(getattr(self, name)) for name in VOCABULARY}

    def over(self, fitted: "ColumnSettings") -> "ColumnSettings":
        """Return a model's settings, with those that the user has named in their place."""
        named = {name: getattr(self, name) for name in self.model_fields_set}
        return fitted.model_copy(update=named)

    def meaning_as(self, other: "ColumnSettings") -> "ColumnSettings":
        """Return these settings with a model's vocabulary and `roi`, where the user names none."""
        unnamed = [name for name in (*VOCABULARY, "roi") if name not in self.model_fields_set]
        return self.model_copy(update={name: getattr(other, name) for name in unnamed})


class StorageSettings(_Frozen):
    """How S3 is reached. They travel to the workers; credentials do not, and are no settings."""

    # URL of another store than AWS's; None: AWS_ENDPOINT_URL, or AWS.
    endpoint: str | None = None
    # None: AWS_REGION, or what the AWS configuration says.
    region: str | None = None
    # Unsigned requests, for public buckets.
    anonymous: bool = False
    # Of one request, after waits of 0.1 s, doubled each time up to 20 s: some 25 s in all.
    retries: NonNegativeInt = 8
    # Without a byte from the store for so long, a request has failed.
    timeout_s: PositiveFloat = 30.0

    @field_validator("endpoint")
    @classmethod
    def _is_url(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and not _ENDPOINT.fullmatch(endpoint):
            raise ValueError("an endpoint is http(s)://HOST[:PORT], without user or password")
        return endpoint


# Whatever else a URL can hold may be a secret, and settings are written down.
_ENDPOINT = re.compile(r"https?://[^/@?#]+/?")


class Settings(_Frozen):
    """All settings. Those under `image` and `backbone` are fixed in a model once it is fitted."""

    preset: str | None = None
    seed: int = 0
    # Whether a fit leaves out the training images that look anomalous themselves.
    robust: bool = False
    # Which rows a fit and its updates take: `good`: those labelled so, not of a split to test on;
    # `all`: every row, whatever its label and split.
    fit_on: Literal["good", "all"] = "good"
    fragment_images: PositiveInt = 256
    # Inference workers on Ray; None: what the cluster has.
    workers: PositiveInt | None = None
    # Bytes that one process may hold of a fit's rows, or of a memory bank and its search; None:
    # half of this machine's memory.
    memory_budget: PositiveInt | None = None
    # A fragment that raises, or kills its worker, is tried so often by each stage, then given up.
    fragment_attempts: PositiveInt = 3
    # Above this share of error rows in the plan the job ends with exit code 3.
    max_failed: float = Field(default=0.01, ge=0, le=1)
    image: ImageSettings = ImageSettings()
    backbone: BackboneSettings = BackboneSettings()
    method: MethodSettings = MethodSettings.model_validate({})
    index: IndexSettings = IndexSettings()
    score: ScoreSettings = ScoreSettings()
    verdict: VerdictSettings = VerdictSettings()
    columns: ColumnSettings = ColumnSettings()
    storage: StorageSettings = StorageSettings()

    @field_validator("score")
    @classmethod
    def _fits_a_zip(cls, score: ScoreSettings, info: ValidationInfo) -> ScoreSettings:
        images = info.data.get("fragment_images", 0)
        packed = score.heatmap_store == "packed" and score.heatmaps != "none"
        if packed and images > MOST_PACKED:
            raise ValueError(
                f"a fragment of {images} images has more heatmaps than go into one file, "
                f"{MOST_PACKED}; set a smaller fragment_images, or score.heatmap_store=files"
            )
        return score

    @field_validator("columns")
    @classmethod
    def _one_region(cls, columns: ColumnSettings, info: ValidationInfo) -> ColumnSettings:
        image = info.data.get("image")
        if columns.roi and image is not None and image.roi:
            raise ValueError(
                f"columns.roi '{columns.roi}' has a region for each image, and image.roi one for "
                f"groups {sorted(image.roi)}: set one of the two"
            )
        return columns


# Settings that there were, and that changed no result: what records say of them is passed over.
_RETIRED = ("batch_size",)


def _without_retired(recorded: object) -> object:
    if isinstance(recorded, dict):
        return {name: value for name, value in recorded.items() if name not in _RETIRED}
    return recorded


# Settings as a model or a run of an earlier version may have recorded them.
RecordedSettings = Annotated[Settings, BeforeValidator(_without_retired)]


def load_settings(
    text: str = "", assignments: Sequence[str] = (), flags: Raw | None = None
) -> Settings:
    """Return the settings of a YAML text, `a.b=c` assignments and flags, the last one winning.

    Raises:
        ConfigError: on an unknown name, a value of the wrong type, or text that is not YAML.
    """
    layers: list[Raw] = [_parse_yaml(text)]
    layers += [_parse_assignment(assignment) for assignment in assignments]
    layers.append(flags or {})
    preset = next((layer["preset"] for layer in reversed(layers) if "preset" in layer), None)
    if preset is not None:
        if str(preset) not in PRESETS:
            raise ConfigError(
                f"preset {shown(str(preset))} is unknown{nearest(str(preset), PRESETS)}"
            )
        layers.insert(0, PRESETS[str(preset)])
    merged: Raw = {}
    for layer in layers:
        merged = _merge(merged, layer)
    return check_settings(merged)


def check_settings(raw: Raw) -> Settings:
    """Return `raw` as settings, or raise `ConfigError` with every fault in one message."""
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("; ".join(_describe(raw, fault) for fault in error.errors())) from None


def digest(value: BaseModel | Raw) -> str:
    """Return the SHA-256 (hex) of settings, in an order that does not depend on how they came."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for an unknown name, or the known ones where none is near."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(names)}"


# PyYAML leaves a date such as 2026-13-01 to datetime, which raises ValueError, and other odd values
# to whatever Python says of them.
_NOT_YAML = (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, OverflowError)
# Settings lie three levels deep, and are some hundred lines.
_DEEPEST, _MOST_CHARACTERS = 20, 1_000_000


class _Loader(yaml.SafeLoader):
    """YAML without aliases, of which a few lines can mean gigabytes, and without repeated names."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"line {event.start_mark.line + 1} has an alias; repeat the value")
        return super().compose_node(parent, index)

    def construct_mapping(  # as SafeLoader has it
        self,
        node: yaml.MappingNode,
        deep: bool = False,  # noqa: FBT001, FBT002
    ) -> dict[object, object]:
        names: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in names:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1} names '{name}' a second time")
            names.add(name)
        return super().construct_mapping(node, deep=deep)


def _loaded(text: str, what: str) -> object:
    """Return what a YAML text says. Raises `ConfigError`, in one line."""
    if len(text) > _MOST_CHARACTERS:
        raise ConfigError(f"{what} has {len(text)} characters, more than {_MOST_CHARACTERS}")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader
    except RecursionError:
        raise ConfigError(f"{what} nests too deeply; settings lie three levels deep") from None
    except _NOT_YAML as error:
        raise ConfigError(f"{what} is not YAML: {_said(error)}") from None


def _said(error: Exception) -> str:
    """Return what is wrong and where, without the text itself: it may hold a secret."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return without_secrets(" ".join(str(error).split()))[:300]


def _parse_yaml(text: str) -> Raw:
    parsed = _loaded(text, "the config file")
    if parsed is None:
        return {}
    if not isinstance(parsed, dict):
        raise ConfigError(f"the config file holds a {type(parsed).__name__}, not settings by name")
    return parsed


def _parse_assignment(assignment: str) -> Raw:
    name, equals, value = assignment.partition("=")
    if not equals or not name:
        raise ConfigError(f"--set takes name=value, got {shown(assignment)}")
    if name.count(".") > _DEEPEST:
        raise ConfigError(f"--set {name[:80]}...: no setting lies {name.count('.')} levels deep")
    nested = _loaded(value, f"--set {name}: the value")
    for part in reversed(name.split(".")):
        nested = {part: nested}
    assert isinstance(nested, dict)
    return nested


def _merge(below: Raw, above: Raw) -> Raw:
    merged = dict(below)
    for name, value in above.items():
        under = merged.get(name)
        both = isinstance(under, Mapping) and isinstance(value, Mapping)
        merged[name] = _merge(under, value) if both else value  # type: ignore[arg-type]
    return merged


def _describe(raw: Raw, fault: Mapping[str, object]) -> str:
    location = fault["loc"]
    assert isinstance(location, tuple)
    # Pydantic adds the branch of a union to the location; a setting's name stops before it.
    parts: list[object] = []
    known: type[BaseModel] | None = Settings
    for part in location:
        if known is None:
            break
        parts.append(part)
        inner = known.model_fields[part].annotation if part in known.model_fields else None
        known = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None
    name = ".".join(map(str, parts))
    if fault["type"] == _EXTRA:
        names = {*known_names(), *Settings.model_fields}
        return f"setting '{name}' is unknown{nearest(name, names)}"
    value: object = raw
    for part in parts:
        value = value.get(part) if isinstance(value, Mapping) else value
    if name == "storage.endpoint":  # somebody may have put a password into it
        return f"setting '{name}': {refused(str(fault['msg']))}"
    wanted = refused(str(fault["msg"]))
    if fault["type"] == "tuple_type":
        wanted = "write a list, [A, B]"
    elif fault["type"] == "missing":
        wanted = f"it needs '{location[-1]}', too"
    return f"setting '{name}' is {value_shown(value)}: {wanted}"


_EXTRA = "extra_forbidden"


def known_names(model: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    """Return the dotted names of all settings."""
    names = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            names += known_names(inner, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names
