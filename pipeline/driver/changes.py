"""What a model was trained on and should not have been, as the lake tells now."""

import logging
import shlex
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from patchlake.pipeline.config import ColumnSettings
from patchlake.pipeline.errors import PatchlakeError
from patchlake.pipeline.groups.files import load_images
from patchlake.pipeline.groups.membership import Membership, with_roots
from patchlake.pipeline.lake.changed import GONE, changed_images
from patchlake.pipeline.methods import build
from patchlake.pipeline.methods.shared.contract import Updatable
from patchlake.pipeline.model_store import models
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.tables import TRAINING_IMAGES

log = logging.getLogger(__name__)

# Lists of images are small, behind the latency of an object store.
_READ_AT_ONCE = 16
# Images that a line names one by one.
_NAMED = 5

Changed = dict[str, dict[str, str]]


def say_changed(
    model: Folder, manifest: models.Manifest, columns: ColumnSettings | None = None
) -> Changed:
    """Log which images of a model the lake would not train on any more; return group -> id -> why.

    What cannot be read is said, and nothing else: a model is good without its lake.

    Args:
        model: The model's folder.
        manifest: Its manifest.
        columns: Of the lake; without, those of the fit.
    """
    changed: Changed = {}
    try:
        by_root = _images_by_root(model, manifest)
    except (PatchlakeError, OSError) as error:
        _say_unread(model, model.root, error)
        return changed
    for root, images in by_root.items():
        lake = Folder.at(root, model.storage)
        try:
            found = changed_images(lake, columns or manifest.settings.columns, images)
        except (PatchlakeError, OSError, pa.ArrowException) as error:
            _say_unread(model, root, error)
            continue
        for group, fates in found.items():
            # Where labels and splits were not read, another one is no matter.
            every = manifest.settings.fit_on == "all"
            left = {one: fate for one, fate in fates.items() if not every or fate == GONE}
            if left:
                changed.setdefault(group, {}).update(left)
    if changed:
        # Not before: a method brings torch, which most models' status does without.
        method = build(manifest.method, manifest.method_options)
        for group, fates in changed.items():
            log.warning("%s", _line(model, group, fates, can_leave=isinstance(method, Updatable)))
    return changed


def _images_by_root(model: Folder, manifest: models.Manifest) -> dict[str, dict[str, pa.Table]]:
    """Return the images in each group's model by the lake that they are from."""
    roots = [step.images for step in manifest.lineage]
    # A person looked at them, whatever the lake says.
    decided = [number for number, step in enumerate(manifest.lineage) if step.reviews is not None]
    by_root: dict[str, dict[str, pa.Table]] = {root: {} for root in roots}
    groups = manifest.groups
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        tables = list(pool.map(partial(load_images, model), groups.values()))
    for group, table in zip(groups, tables, strict=True):
        if table is None:
            continue
        images = with_roots(Membership.stored(table).present, roots)
        is_decided = pc.is_in(images.column("joined"), value_set=pa.array(decided, pa.int32()))
        images = images.filter(pc.invert(is_decided))
        for root in roots:
            of_root = images.filter(pc.equal(images.column("root"), root))
            if len(of_root):
                by_root[root][group] = of_root.select(TRAINING_IMAGES.names)
    return {root: of_groups for root, of_groups in by_root.items() if of_groups}


def _say_unread(model: Folder, root: str, error: Exception) -> None:
    log.warning(
        "whether the images that %s was trained on are still what they were is not known: %s "
        "cannot be read (%s)",
        model.root,
        root,
        error,
    )


def _line(model: Folder, group: str, fates: Mapping[str, str], *, can_leave: bool) -> str:
    some = list(fates.items())[:_NAMED]
    named = ", ".join(f"'{image_id}' ({fate})" for image_id, fate in some)
    if len(fates) > len(some):
        counted = Counter(fates.values()).most_common(_NAMED)
        named = "; ".join(f"{count} times: {fate}" for fate, count in counted)
        named += f"; the first are {', '.join(repr(image_id) for image_id, _ in some)}"
        named += ", and `patchlake status --json` lists them all"
    way = "fit again"
    if can_leave:
        command = ["patchlake", "withdraw", model.root]
        for image_id, _ in some:
            command += ["--image", image_id]
        command += ["--group", group]
        what = "takes them out" if len(fates) == len(some) else "takes the first out"
        way = f"`{shlex.join(command)}` {what}"
    return (
        f"{model.root} was trained on {len(fates)} images of group '{group}' that are not images "
        f"to train on any more: {named}; {way}"
    )
