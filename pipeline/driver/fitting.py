"""What a fit is going to do: all that can be wrong with the command, and how the work is cut."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from patchlake.pipeline.config import Settings, digest
from patchlake.pipeline.driver.interests import Regions, asked_regions
from patchlake.pipeline.driver.shapes import asked_shapes, fitting_fragments
from patchlake.pipeline.driver.training import choose_rows
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.features.backbone import Backbone, load_backbone
from patchlake.pipeline.features.extractor import Extractor, stride_of
from patchlake.pipeline.images.geometry import geometry_of
from patchlake.pipeline.lake.plan import output_digest, plan_fragments
from patchlake.pipeline.lake.selection import Selection
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.methods import build, options_of, rotations_of
from patchlake.pipeline.methods.shared.contract import Method, Updatable
from patchlake.pipeline.model_store import models
from patchlake.pipeline.model_store.identity import Identity
from patchlake.pipeline.reading.planning import Plan
from patchlake.pipeline.record import runs
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.where.condition import read_where


@dataclass(frozen=True)
class FitWork:
    """What a fit is going to do."""

    plan: Plan
    source: Source
    record: runs.RunRecord
    # Group -> which of its rows it learns from.
    selections: Mapping[str, Selection]
    method: Method
    identity: Identity
    # Group -> what of its pictures counts, and the grid of the method's patches, if it has one.
    regions: Regions


def plan_fit(lake: Folder, settings: Settings, where: str | None) -> FitWork:
    """Check everything that can be wrong with the command, then cut the work.

    Raises:
        ConfigError, ModelError: if a setting, the weights or the lake are wrong.
    """
    method = build(settings.method.name, settings.method.options())
    rotations = rotations_of(options_of(method))
    _require_possible(settings, method)
    _require_whole_pictures(settings, rotations)
    settings = _with_pixels(_with_layers(settings, method))
    plan = plan_fragments(lake, settings, where).sound()
    # Where each group has its own, it is not known before its photos are.
    geometry = geometry_of(settings.image.resize, settings.image.crop, {})
    source = Source(lake, settings.columns, settings.image, geometry, read_where(where))
    selections = choose_rows(source, plan.kept, settings.fit_on)
    backbone = load_backbone(settings.backbone, seed=settings.seed, storage=lake.storage)
    # From here on it is what it was found to be, in every worker.
    precise = settings.backbone.model_copy(update={"precision": backbone.precision})
    settings = settings.model_copy(update={"backbone": precise})
    shapes: dict[str, tuple[int, int]] = {}
    if settings.image.resize == "auto":
        shapes = asked_shapes(source, selections, plan.kept, settings, stride_of(backbone))
        source = replace(source, geometry=geometry_of("auto", None, shapes))
    bounded = fitting_fragments(settings, [source.geometry], plan.groups, rotations)
    if bounded != settings:
        settings, plan = bounded, plan_fragments(lake, bounded, where).sound()
    embed = partial(method.embed, seed=settings.seed)
    extractor = Extractor(backbone, embed, settings.image.tile)
    # Black images show here, not in every worker, whether method and backbone go together.
    for size in {source.geometry.of(group).input_size for group in plan.groups}:
        extractor.require_fit(size)
    regions = asked_regions(settings, (source, where), plan.groups, extractor)
    identity = _identity(settings, method, backbone, shapes)
    version = _version(settings, identity, regions)
    plan = plan.keyed({}, otherwise=version)
    record = runs.RunRecord(
        run=runs.identify(lake, version, where, plan.kept),
        verb="fit",
        images=lake.root,
        where=where,
        version=version[:12],
        started_at=runs.now(),
        settings=settings,
    )
    return FitWork(plan, source, record, selections, method, identity, regions)


def _identity(
    settings: Settings,
    method: Method,
    backbone: Backbone,
    shapes: Mapping[str, tuple[int, int]],
) -> Identity:
    assert settings.backbone.layers is not None  # `_with_layers` has set them.
    return Identity(
        method=settings.method.name,
        method_options=options_of(method),
        geometry=models.GeometryRecord.of(settings.image),
        network=models.Network(
            name=settings.backbone.name,
            layers=settings.backbone.layers,
            weights=settings.backbone.weights,
            weights_sha256=backbone.weights_sha256,
            precision=backbone.precision,
        ),
        index=settings.index.model_dump(mode="json"),
        seed=settings.seed,
        robust=settings.robust,
        each_has_roi=bool(settings.columns.roi),
        shapes=shapes,
    )


def _version(settings: Settings, identity: Identity, regions: Regions) -> str:
    """Return what tells fits apart whose embeddings or models differ."""
    covered = {**identity.covered(), **regions.covered()}
    covered |= {"shapes": identity.shapes} if identity.shapes else {}
    covered |= {"fit_on": "all"} if settings.fit_on == "all" else {}
    output, vocabulary = output_digest(settings), settings.columns.vocabulary
    return digest({**covered, "output": output, "vocabulary": vocabulary})


def _require_possible(settings: Settings, method: Method) -> None:
    """Refuse what the method cannot do. Raises `ConfigError`."""
    if settings.index.kind != "exact" and method.exact_because:
        raise ConfigError(
            f"method '{settings.method.name}' cannot use index.kind={settings.index.kind}: "
            f"{method.exact_because}; use index.kind=exact"
        )
    if settings.robust and not isinstance(method, Updatable):
        raise ConfigError(
            "robust fits score each training image without its own part in the model, and a model "
            f"of method '{settings.method.name}' is trained on all of them together; fit without "
            "--robust (robust=false), or with another method"
        )


def _require_whole_pictures(settings: Settings, rotations: int) -> None:
    """Refuse regions of interest of photos that are turned. Raises `ConfigError`."""
    regions = "image.roi" if settings.image.roi else "columns.roi" if settings.columns.roi else ""
    if rotations > 1 and regions:
        raise ConfigError(
            f"{regions} says what of a picture counts, and method.rotations={rotations} turns the "
            "part out of that region: leave one of the two out"
        )


def _with_layers(settings: Settings, method: Method) -> Settings:
    """Return the settings with the method's own layers where none are named."""
    if settings.backbone.layers is not None:
        return settings
    backbone = settings.backbone.model_copy(update={"layers": method.layers})
    return settings.model_copy(update={"backbone": backbone})


def _with_pixels(settings: Settings) -> Settings:
    """Return the settings with what bounds inputs of the photo's own shape, where they have it."""
    if settings.image.resize != "auto" or settings.image.pixels is not None:
        return settings
    image = settings.image.model_copy(update={"pixels": settings.image.own_pixels})
    return settings.model_copy(update={"image": image})
