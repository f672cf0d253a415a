"""review: scores/ -> decisions of a person, in reviews/; on a page, or out of a file."""

import getpass
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver.chosen import Choice, Filter, choose
from patchlake.pipeline.driver.dataset import ScoreDataset, open_table, version_of
from patchlake.pipeline.driver.desk import Reviewed, Session, Subject
from patchlake.pipeline.driver.pictured import Pictures
from patchlake.pipeline.errors import ConfigError, Stopped, StorageRefused
from patchlake.pipeline.reviews import table as reviews_table
from patchlake.pipeline.reviews.given import read_given
from patchlake.pipeline.score_table.parts import score_table_of, source_of
from patchlake.pipeline.shown import counted, listed, shown
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.preflight import Preflight
from patchlake.pipeline.storage.roles import Use
from patchlake.pipeline.tables import REVIEWS

log = logging.getLogger(__name__)

_NAMED = 3
_MOST_IMAGES = 10_000
_PLACE = ("source_path", "source_row")
_JOINED = (
    *("image_id", "group", *_PLACE, "model_id"),
    *("image_score", "p_value", "is_anomalous"),
)
_SEPARATOR = "\x00"

# Of the scores, `_JOINED`.
_Row = Mapping[str, object]


@dataclass(frozen=True)
class Asked:
    """What is reviewed, and by whom. None: whoever is logged in, any free port."""

    choice: Choice = field(default_factory=partial(Choice, count=100))
    reviewer: str | None = None
    # Whether images are shown that this reviewer has decided on before.
    again: bool = False
    port: int = 0


def run(
    scores: str,
    reviews: str,
    asked: Asked | None = None,
    settings: Settings | None = None,
    ready: Callable[[str], None] | None = None,
) -> Reviewed:
    """Serve a page to this machine until the person is done, or the job is stopped.

    A decision is a file of its own, written before the page says so.

    Args:
        scores: A score table, or a compacted one. It is only read.
        reviews: Folder of the reviews table; it need not exist yet.
        asked: Which images, and who reviews.
        settings: Of which `storage` counts, and `seed`, of which a random order is.
        ready: Is called with the link of the page.

    Raises:
        ConfigError: if a folder has another role, there is no such table, group or night, no name
            of a reviewer, or the page's libraries are not installed.
    """
    asked, settings = asked or Asked(), settings or Settings()
    _require_libraries()
    from patchlake.pipeline.review_page.serving import served

    reviewer = _reviewer(asked.reviewer)
    if not 0 < asked.choice.count <= _MOST_IMAGES:
        raise ConfigError(f"a session has 1 to {_MOST_IMAGES} images, not {asked.choice.count}")
    try:
        subject, dataset, table = _opened(scores, reviews, reviewer, settings)
        keep = (lambda rows: rows) if asked.again else _undecided(subject)
        images, _ = choose(dataset, asked.choice, keep)
        pictures = Pictures.of(table, subject.version, settings.storage)
    except StorageRefused as error:
        raise ConfigError(str(error)) from None
    session = Session(subject, images, pictures)
    session.read_ahead(0)
    with served(session, asked.port) as (link, done):
        (ready or _say_ready)(link)
        try:
            done.wait()
        except Stopped:
            # What was decided is written: a stop is another way to say that one is done.
            log.info("the review of %s was stopped", subject.scores)
    session.close()
    return session.reviewed


def take(
    scores: str,
    reviews: str,
    given: str,
    reviewer: str | None = None,
    settings: Settings | None = None,
) -> Reviewed:
    """Append decisions out of a file, each joined with the row of scores that it is about.

    The same file once more adds nothing.

    Args:
        scores: A score table, or a compacted one. It is only read.
        reviews: Folder of the reviews table; it need not exist yet.
        given: A CSV or Parquet file with columns `image_id` and `verdict`, or a reviews table.
        reviewer: Who decided, where the file does not say; else the file's name stands for it.
        settings: Of which `storage` counts.

    Raises:
        ConfigError: if an image is not among the scores, or an id is of several and the file does
            not say which; nothing is written then.
        TableError: if a cell of the file means nothing.
    """
    settings = settings or Settings()
    try:
        subject, dataset, _ = _opened(scores, reviews, reviewer or "", settings)
        rows = read_given(given, settings.storage)
        if not len(rows):
            raise ConfigError(f"{shown(given)} has no decision")
        joined = _joined(rows, dataset, subject)
        if reviewer is not None:
            joined = _by(joined, _reviewer(reviewer), given)
        reviews_table.append(subject.reviews, joined)
    except StorageRefused as error:
        raise ConfigError(str(error)) from None
    last: dict[tuple[object, ...], str] = {}
    for row in joined.to_pylist():
        last[row["reviewer"], row["source_path"], row["source_row"]] = row["verdict"]
    names = sorted(set(joined.column("reviewer").to_pylist()))
    words = list(last.values())
    return Reviewed.of(subject.reviews.root, ", ".join(names), len(words), words, len(joined))


def _require_libraries() -> None:
    try:
        import jinja2  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"the page of `patchlake review` needs {error.name}, which is not installed: "
            "pip install 'patchlake[review]'; or give decisions in a file, with --from"
        ) from None


def _reviewer(name: str | None) -> str:
    if name is None:
        try:
            name = getpass.getuser()
        except (OSError, KeyError):
            raise ConfigError("nobody is logged in by a name; say --reviewer NAME") from None
    if not name.strip() or len(name) > reviews_table.MOST_CHARACTERS:
        raise ConfigError(f"{shown(name)} is not the name of a reviewer")
    return name


def _opened(
    scores: str, reviews: str, reviewer: str, settings: Settings
) -> tuple[Subject, ScoreDataset, Folder]:
    """Return what is reviewed, its rows and its folder; folders of other roles are refused."""
    table = Folder.at(scores, settings.storage)
    target = Folder.at(reviews, settings.storage)
    itself = score_table_of(table)
    is_compacted = itself.root != table.root
    roles = [
        Use(table, "compacted" if is_compacted else "scores"),
        Use(target, "reviews", is_written=True),
    ]
    root = source_of(itself)
    if root is not None:
        roles.append(Use(Folder.at(root, settings.storage), "images"))
    Preflight([table], [target], roles=roles).here()
    version = version_of(table, None)
    subject = Subject(target, reviewer, itself.root, version, root)
    return subject, open_table(table, version), table


def _say_ready(link: str) -> None:
    log.info("the page is at %s", link)


# --- what was decided before


def _undecided(subject: Subject) -> Filter:
    """Return what leaves out the images that the reviewer has decided on."""
    before = reviews_table.read(subject.reviews)
    own = before.filter(pc.equal(before.column("reviewer"), subject.reviewer))
    has_place = pc.and_(own.column("source_path").is_valid(), own.column("source_row").is_valid())
    is_here = pc.equal(own.column("root"), pa.scalar(subject.root, pa.string()))
    places = _keys(own.filter(pc.fill_null(pc.and_(has_place, is_here), False)), _PLACE)  # noqa: FBT003
    unplaced = own.filter(pc.or_(pc.invert(has_place), own.column("root").is_null()))
    names = _keys(unplaced.filter(unplaced.column("group").is_valid()), ("group", "image_id"))
    ids = unplaced.filter(unplaced.column("group").is_null()).column("image_id")

    def keep(rows: pa.Table) -> pa.Table:
        known = [
            pc.is_in(_keys(rows, _PLACE), value_set=places),
            pc.is_in(_keys(rows, ("group", "image_id")), value_set=names),
            pc.is_in(rows.column("image_id"), value_set=ids.combine_chunks()),
        ]
        return rows.filter(pc.invert(pc.or_(pc.or_(known[0], known[1]), known[2])))

    return keep


def _keys(rows: pa.Table, names: Sequence[str]) -> pa.Array:
    """Return columns of each row as one text."""
    texts = [rows.column(name).cast(pa.string()) for name in names]
    joined = pc.binary_join_element_wise(*texts, _SEPARATOR)
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


# --- decisions out of a file


def _joined(given: pa.Table, dataset: ScoreDataset, subject: Subject) -> pa.Table:
    """Return decisions with what the rows of scores say of their images."""
    ids = given.column("image_id").unique()
    rule = ds.field("image_id").isin(ids)
    by_id: dict[str, list[_Row]] = defaultdict(list)
    for batch in dataset.to_batches(columns=list(_JOINED), filter=rule):
        for row in batch.to_pylist():
            by_id[row["image_id"]].append(row)
    rows = given.to_pylist()
    unknown: list[str] = []
    several: list[tuple[str, list[_Row]]] = []
    for row in rows:
        name = row["image_id"]
        found = [one for one in by_id[name] if _is_meant(row, one)]
        if len(found) == 1:
            row.update(found[0], root=subject.root, scores=subject.scores, version=subject.version)
        elif found:
            several.append((name, found))
        else:
            unknown.append(name)
    _require_joined(unknown, several, subject, len(rows))
    return pa.Table.from_pylist(rows, schema=REVIEWS)


def _require_joined(
    unknown: Sequence[str],
    several: Sequence[tuple[str, Sequence[_Row]]],
    subject: Subject,
    rows: int,
) -> None:
    """Raise `ConfigError` if a decision is on no image of the scores, or on several."""
    if unknown:
        named = listed(unknown[:_NAMED])
        raise ConfigError(
            f"{counted(len(unknown), 'decisions')} of {rows} are on images that version "
            f"'{subject.version}' of {subject.scores} does not have, as {named}; take them out"
        )
    if several:
        name, found = several[0]
        places = listed([f"{one['group']}: {one['source_path']}" for one in found[:_NAMED]])
        raise ConfigError(
            f"{counted(len(several), 'decisions')} of {rows} name several images: "
            f"{shown(name)} is {places}; add a column group, or source_path and "
            "source_row"
        )


def _is_meant(row: _Row, image: _Row) -> bool:
    names = ("group", *_PLACE)
    return all(row[name] in (None, image[name]) for name in names)


def _by(reviews: pa.Table, reviewer: str, given: str) -> pa.Table:
    """Return reviews, of which those that name nobody (but their file) are a reviewer's."""
    name = given.rpartition("/")[2]
    said = reviews.column("reviewer")
    at = reviews.schema.get_field_index("reviewer")
    column = pc.if_else(pc.equal(said, name), pa.scalar(reviewer), said)
    return reviews.set_column(at, REVIEWS.field("reviewer"), column)
