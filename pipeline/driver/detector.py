"""A model in memory: images one by one or in lists, without a lake, a score table or Ray."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float32
from PIL import Image

from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver.drive import models_budget
from patchlake.pipeline.driver.interests import Regions, require_same_roi
from patchlake.pipeline.driver.members import calibrations_of, read_members
from patchlake.pipeline.errors import ConfigError, ImageError, Status
from patchlake.pipeline.groups.member import Member
from patchlake.pipeline.headway import Passed
from patchlake.pipeline.images.decode import decode_picture, limits_of
from patchlake.pipeline.images.formats import as_image_errors
from patchlake.pipeline.images.geometry import inputs_of
from patchlake.pipeline.images.interest import confine
from patchlake.pipeline.images.light import to_light
from patchlake.pipeline.images.pictures import Picture, picture_of
from patchlake.pipeline.scores.calibration import mean_scale
from patchlake.pipeline.scores.heatmap import ColourScale
from patchlake.pipeline.scores.regions import Region
from patchlake.pipeline.scores.verdict import Judgement, Verdict, judgements_of
from patchlake.pipeline.stages.examined import Examined
from patchlake.pipeline.stages.infer import Scorer
from patchlake.pipeline.storage.folder import Folder, split_uri

# A path or URI of a file; its bytes; a picture of Pillow's; or its pixels: uint8 (h, w) of grey,
# (h, w, 3) of red, green and blue, (h, w, 4) with alpha, or uint16 (h, w) of grey.
ImageLike = str | os.PathLike[str] | bytes | Image.Image | np.ndarray


@dataclass(frozen=True)
class Detection:
    """What a model says of one image: a row of the score table, in memory."""

    status: Status
    # Why there is no score.
    error: str | None = None
    # Larger is worse: a raw distance, as in the score table.
    image_score: float | None = None
    # Raw distance of each patch; None where the method has none.
    anomaly_map: Float32[np.ndarray, "rows columns"] | None = None
    # Of `image_score`; None where the model has none.
    threshold: float | None = None
    # How rarely a good image of a new part scores so high, at the most; None: no calibration.
    p_value: float | None = None
    # Where an anomalous image is so, the largest first; None without a verdict or maps.
    regions: tuple[Region, ...] | None = None
    # Pixels of the upright image.
    width: int | None = None
    height: int | None = None
    _drawing: "_Drawing | None" = None

    @property
    def is_anomalous(self) -> bool | None:
        """Whether the score is above the threshold; None where one of them is missing."""
        if self.image_score is None:
            return None
        return Judgement(self.image_score, self.threshold).is_anomalous

    def heatmap(self) -> Image.Image:
        """Return the heatmap that a score job would write: RGB, a photo with a strip below it.

        The photo has at most 512 pixels a side, and is at the upper left corner.

        Raises:
            ConfigError: if there is no score, or the method has no anomaly maps.
        """
        if self._drawing is None:
            reason = self.error or "the method has no anomaly maps"
            raise ConfigError(f"there is no heatmap: {reason}")
        return self._drawing.draw()


@dataclass(frozen=True)
class _Drawing:
    """What a heatmap is drawn of, when it is asked for."""

    photo: bytes
    scale: ColourScale
    # Makes the image anew: what it has made of the map is not kept for each detection.
    image: Callable[[], Examined]

    def draw(self) -> Image.Image:
        return Image.fromarray(self.image().picture(self.photo, self.scale))


class Detector:
    """One fitted model, or an ensemble of several, that scores images where they are."""

    def __init__(self, members: Sequence[Member], settings: Settings, threads: int) -> None:
        """Load the networks; the model of a group is loaded when it is first asked for."""
        self._members = members
        self._geometries = tuple(dict.fromkeys(member.geometry for member in members))
        fixed = members[0].manifest.geometry.settings
        self._image = settings.image.model_copy(update=fixed)
        self._storage = settings.storage
        fitted = members[0].manifest.settings.verdict
        self._rate = settings.verdict.over(fitted).false_alarm_rate
        if members[0].manifest.settings.columns.roi:
            raise ConfigError(
                f"{members[0].model.root} was fitted with a region of interest for each image "
                f"(columns.roi '{members[0].manifest.settings.columns.roi}'), which a picture by "
                "itself has not: score a table with `patchlake score`"
            )
        self._regions = Regions.of(members, self.groups)
        # Read from the model folder once.
        self._verdicts: dict[str, Verdict | None] = {}
        self._scales: dict[str, ColourScale | None] = {}
        scorer = Scorer(
            members=members,
            geometries=self._geometries,
            models_budget=models_budget(settings),
        )
        self._infer = scorer.start(threads)

    @property
    def groups(self) -> list[str]:
        """Groups that the model, or each model of an ensemble, has."""
        first, *others = (member.manifest.groups for member in self._members)
        return [group for group in first if all(group in groups for groups in others)]

    def score(self, images: Iterable[ImageLike], *, group: str | None = None) -> list[Detection]:
        """Return what the model says of each image, in their order.

        An image that cannot be scored has a status and an error, as its row of a score table
        would. Scores do not depend on the images beside them. Not to be called in two threads at
        once.

        Args:
            images: Paths, bytes, pictures or pixels; all of them are in memory at once, at the
                size of the model's input. Pictures and pixels are taken whole: `image.draft` of
                the fit is for files.
            group: The product or station; may be left out where the model has one.

        Raises:
            ConfigError: if the group is not the model's.
        """
        named = self._group(group)
        found = [self._picture(image, named) for image in images]
        pictures = [one for one in found if isinstance(one, Picture)]
        if not pictures:
            return [_failed(one) for one in found if isinstance(one, ImageError)]
        pixels = np.stack([picture.pixels for picture in pictures])
        interiors = [one.interior for one in pictures if one.interior is not None]
        # Of no fragment.
        scores = self._infer.score(pixels, named, Passed("infer", ""), interiors)
        maps = scores.anomaly_maps
        judgements = judgements_of(scores.image_scores, self._verdict(named))
        detections = iter(
            self._detection(named, picture, judgement, None if maps is None else maps[number])
            for number, (picture, judgement) in enumerate(zip(pictures, judgements, strict=True))
        )
        return [_failed(one) if isinstance(one, ImageError) else next(detections) for one in found]

    def _detection(
        self,
        group: str,
        picture: Picture,
        judgement: Judgement,
        anomaly_map: Float32[np.ndarray, "rows columns"] | None,
    ) -> Detection:
        regions, drawing, scale = None, None, self._scale(group)
        if anomaly_map is not None:
            size = picture.width, picture.height
            geometry = self._geometries[0].of(group)
            seen = judgement, anomaly_map, size, geometry, picture.interior
            image = partial(Examined, *seen)
            regions = image().regions()
            if scale is not None and picture.photo is not None:
                drawing = _Drawing(picture.photo, scale, image)
        return Detection(
            status="ok",
            image_score=judgement.score,
            anomaly_map=anomaly_map,
            threshold=judgement.threshold,
            p_value=judgement.p_value,
            regions=None if regions is None else tuple(regions),
            width=picture.width,
            height=picture.height,
            _drawing=drawing,
        )

    def _group(self, group: str | None) -> str:
        groups = self.groups
        if group is None and len(groups) == 1:
            return groups[0]
        if group not in groups:
            asked = "name one of them" if group is None else f"'{group}' is none of them"
            raise ConfigError(f"the model has groups {groups}; {asked}: score(..., group=)")
        return group

    def _picture(self, image: ImageLike, group: str) -> Picture | ImageError:
        try:
            found = self._whole_picture(image, group)
            interest = self._regions.interests.get(group)
            if interest is None:
                return found
            grids = self._regions.grids[group]
            return confine(found, interest, inputs_of(self._geometries, group), grids)
        except ImageError as error:
            return error

    def _whole_picture(self, image: ImageLike, group: str) -> Picture:
        """Return a picture, all of it. Raises `ImageError`."""
        inputs = inputs_of(self._geometries, group)
        if isinstance(image, np.ndarray):
            image = _from_array(image)
        if isinstance(image, Image.Image):
            with as_image_errors():
                upright = to_light(image, self._image.bits)
                return picture_of(upright, inputs, photo=True)
        content = image if isinstance(image, bytes) else self._read(os.fspath(image))
        return decode_picture(content, limits_of(self._image), inputs, photo=True)

    def _read(self, path: str) -> bytes:
        folder, name = split_uri(path, self._storage)
        try:
            size = folder.entry(name).size
            if size > self._image.max_bytes:
                raise ImageError(
                    "too_large", f"{size} bytes, image.max_bytes is {self._image.max_bytes}"
                )
            return folder.read(name)
        except FileNotFoundError:
            raise ImageError("missing", f"there is no file {path!r}") from None

    def _verdict(self, group: str) -> Verdict | None:
        if group not in self._verdicts:
            calibrations = calibrations_of(self._members, group)
            self._verdicts[group] = Verdict.of(calibrations, self._rate)
        return self._verdicts[group]

    def _scale(self, group: str) -> ColourScale | None:
        if group not in self._scales:
            some = calibrations_of(self._members, group)
            self._scales[group] = some[0].scale if len(some) == 1 else mean_scale(some)
        return self._scales[group]


def load(models: Sequence[str], settings: Settings, threads: int | None = None) -> Detector:
    """Return the model of a folder, or the ensemble of several, with its networks loaded.

    Args:
        models: Folders or URIs.
        settings: Of which `backbone.weights`, `image` limits, `storage` and memory count.
        threads: Of the network and the search; without, all cores.

    Raises:
        ConfigError, ModelError: if there is no model, it is damaged, or the weights are others.
    """
    folders = [Folder.at(model, settings.storage) for model in models]
    members = read_members(folders, settings)
    for member in members:
        require_same_roi(settings, member.model, member.manifest)
    return Detector(members, settings, threads or os.cpu_count() or 1)


def _from_array(array: np.ndarray) -> Image.Image:
    shape, kind = array.shape, array.dtype
    is_grey = len(shape) == len(("h", "w")) and kind in (np.uint8, np.uint16)
    is_colour = len(shape) == len(("h", "w", "c")) and shape[-1] in (3, 4) and kind == np.uint8
    if not (is_grey or is_colour) or 0 in shape:
        raise ImageError(
            "unsupported",
            f"an array of shape {shape} and type {kind} is no image: it is read as uint8 (h, w), "
            "(h, w, 3) or (h, w, 4), or as uint16 (h, w)",
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _failed(error: ImageError) -> Detection:
    return Detection(status=error.status, error=str(error))
