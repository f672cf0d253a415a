"""Settings of images: how one becomes the pixels that the network is given."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import (
    Field,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from patchlake.pipeline.config.frozen import Frozen
from patchlake.pipeline.shown import shown

# As Pillow names them; `pipeline.images.formats` says why some are not read unless asked for.
ImageFormat = Literal["JPEG", "PNG", "TIFF", "BMP", "WEBP", "PPM", "GIF", "JPEG2000"]
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


class TileSettings(Frozen):
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


class ImageSettings(Frozen):
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
    roi: dict[str, Interest] = Field(default={})

    @field_validator("tile")
    @classmethod
    def _cuts_something(
        cls, tile: TileSettings | None, info: ValidationInfo
    ) -> TileSettings | None:
        # A `resize` that is no size at all is missing here, and has an error of its own.
        resize = info.data.get("resize", "auto")
        longest = max(resize) if isinstance(resize, tuple) else 0
        if tile is not None and resize != "auto" and longest <= tile.size:
            raise ValueError(
                f"image.resize is {resize}, and tiles of {tile.size} pixels are cut of inputs of "
                "the photo's own shape or of a pair with a larger side; set image.resize=auto, or "
                "such a pair"
            )
        return tile

    @field_validator("pixels")
    @classmethod
    def _of_own_shapes(cls, pixels: int | None, info: ValidationInfo) -> int | None:
        if pixels is not None and info.data.get("resize", "auto") != "auto":
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
