"""Several commands at one model: one step follows another, and a score keeps what it began with."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver import ingest
from patchlake.pipeline.images.synthetic import write_products
from patchlake.pipeline.model_store.models import read_manifest, verify_file
from patchlake.pipeline.sources.sources import Arrangement
from patchlake.pipeline.storage.folder import Folder
from tests.chaos.checking import check_no_temporaries, check_scores
from tests.chaos.conftest import FLAGS, PARTS, SCORED_AT, wait_for
from tests.conftest import LOCAL, read_scores, soak

LOCALLY = ("--runner", "local")
GROUP = "woven_cloth"


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory, cut: Settings) -> Path:
    """Other images of the same two groups."""
    root = tmp_path_factory.mktemp("more")
    write_products(root / "pictures", seed=2, train=12, good=1, defects=1)
    ingest.run(str(root / "pictures"), str(root / "images"), Arrangement(), cut, LOCAL)
    return root / "images"


@pytest.fixture
def changing(model: Path, tmp_path: Path) -> Path:
    """A copy of the model, which a test may change."""
    return Path(shutil.copytree(model, tmp_path / "model"))


def withdrawal(model: Path) -> tuple[object, ...]:
    """Return a command that takes one image out of one group."""
    file = next(model.glob(f"g={GROUP}/images-*.parquet"))
    image_id = pq.ParquetFile(file).read(["image_id"]).column(0)[0].as_py()
    return ("withdraw", model, "--image", image_id, "--group", GROUP, *LOCALLY)


def steps(model: Path) -> list[tuple[str, int, int]]:
    """Return the lineage: each verb, and how many images came and left. The model is whole."""
    folder = Folder(str(model))
    manifest = read_manifest(folder)
    for record in manifest.groups.values():
        for file in record.files:
            verify_file(folder, file)
    check_no_temporaries(model)
    found = []
    for step in manifest.lineage:
        changes = step.groups.values()
        added, gone = sum(c.added for c in changes), sum(c.withdrawn for c in changes)
        found.append((step.verb, added, gone))
    return found


@pytest.mark.parametrize("other", [soak("the same"), soak("another update"), "a withdrawal"])
def test_two_changes_of_a_model_at_once(other: str, changing: Path, more: Path, start, faults):
    """One of them is the next step; the other says so, and follows when it is started again."""
    fitted = steps(changing)
    update = ("fit", more, changing, "--update", *LOCALLY, "--set", "fragment_images=3")
    commands = {
        "the same": update,
        "another update": (*update, "--where", f"\"group\" = '{GROUP}'"),
        "a withdrawal": withdrawal(changing),
    }
    command = commands[other]
    # Some 20 s of work: the second one begins within it.
    faults.plan(slow={"embed": 2.0})
    first = start(*update)
    wait_for(changing, "_runs/*/partials/*.embeddings.arrow", 1)
    second = start(*command)
    ended = [(*first.end(), update), (*second.end(), command)]
    faults.plan()
    codes = sorted(code for code, *_ in ended)
    assert codes == ([0, 0] if other == "the same" else [0, 2]), ended
    for code, said, again in ended:
        assert "Traceback" not in said
        if code:
            assert "start again" in said.splitlines()[-1]
            assert start(*again).end()[0] == 0
    found = steps(changing)[len(fitted) :]
    assert sum(added for _, added, _ in found) == 24
    assert sum(gone for *_, gone in found) == (other == "a withdrawal")


@pytest.mark.soak
@pytest.mark.parametrize("change", ["withdraw", "update", "refit"])
def test_a_model_that_changes_during_a_score(
    change: str,
    changing: Path,
    images: Path,
    more: Path,
    oracle: Path,
    tmp_path: Path,
    start,
    faults,
):
    """The score ends as it began, to the byte; the next one is another version."""
    scores = tmp_path / "scores"
    score = ("score", images, changing, scores, *FLAGS, *SCORED_AT, *LOCALLY)
    refit = ("--overwrite", *LOCALLY, *FLAGS, "--set", "method.coreset_fraction=0.2")
    commands = {
        "withdraw": withdrawal(changing),
        "update": ("fit", more, changing, "--update", *LOCALLY),
        "refit": ("fit", images, changing, *refit),
    }
    # 16 fragments: longer than a command of ten seconds takes on a busy machine.
    faults.plan(slow={"infer": 4.0})
    job = start(*score)
    wait_for(scores, PARTS, 2)
    code, said = start(*commands[change]).end()
    assert code == 0, said
    seen = len(list(scores.glob(PARTS)))
    faults.plan()
    code, said = job.end()
    assert code == 0, said
    assert seen < len(list(scores.glob(PARTS))), "the model changed while it was scored with"
    check_scores(scores, images, oracle)
    fitted_anew = ("--set", "method.coreset_fraction=0.2") if change == "refit" else ()
    code, said = start(*score, *fitted_anew).end()
    assert code == 0, said
    assert len(list(scores.glob("version=*"))) == 2
    assert read_scores(scores).num_rows == 2 * read_scores(oracle).num_rows
