"""Fuzz target: a model folder with one file changed; loading and scoring end in a `ModelError`.

    python -m tests.fuzz.model --seconds 600

In half of the cases the file's SHA-256 is mended in `model.json`, and in half of those the group's
digest as well, so that what is parsed is what was changed.
"""

import atexit
import io
import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np

from patchlake.pipeline.config import load_settings
from patchlake.pipeline.driver import fit, ingest
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.groups.files import load_accounts, load_calibration
from patchlake.pipeline.groups.member import Member
from patchlake.pipeline.headway import Passed
from patchlake.pipeline.images.synthetic import write_products
from patchlake.pipeline.methods import build
from patchlake.pipeline.model_store import models
from patchlake.pipeline.model_store.identity import Identity, require_whole
from patchlake.pipeline.scores.caption import captioned
from patchlake.pipeline.scores.heatmap import overlay
from patchlake.pipeline.scores.verdict import Judgement
from patchlake.pipeline.sources.sources import Arrangement
from patchlake.pipeline.stages.infer import Infer, Scorer
from patchlake.pipeline.storage.folder import Folder
from tests.conftest import LOCAL, TINY
from tests.fuzz.harness import main

_METHODS = {
    "patchcore": {"method": {"name": "patchcore", "coreset_fraction": 0.1}},
    "hnsw": {
        "method": {"name": "patchcore", "coreset_fraction": 0.1},
        "index": {"kind": "hnsw", "min_recall": 0},
    },
    "ivf": {
        "method": {"name": "patchcore", "coreset_fraction": 0.1},
        "index": {"kind": "ivf", "min_recall": 0},
    },
    "padim": {"method": {"name": "padim"}},
    "mahalanobis": {"method": {"name": "mahalanobis"}},
    "spade": {"method": {"name": "spade"}},
}
GROUP = "woven_cloth"
# The variable that names the folder of the models.
MODELS = "PATCHLAKE_FUZZ_MODELS"


def prepare() -> None:
    """Fit a model of each method; the processes of the cases find them by the environment."""
    root = Path(tempfile.mkdtemp(prefix="patchlake-fuzz-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    # The results are shown on stdout, which is the harness's.
    with redirect_stdout(io.StringIO()):
        fit_models(root, _METHODS)
    os.environ[MODELS] = str(root / "models")


def fit_models(root: Path, methods: Iterable[str]) -> None:
    """Write a model of each of these methods to `root/models`, of images that are made there."""
    write_products(root / "pictures", seed=1, train=6, good=1, defects=1)
    plain = load_settings(flags=TINY)
    ingest.run(str(root / "pictures"), str(root / "images"), Arrangement(), plain, LOCAL)
    for method in methods:
        settings = load_settings(flags=TINY | _METHODS[method])
        target = str(root / "models" / method)
        fit.run(str(root / "images"), target, settings, LOCAL, where=f"\"group\" = '{GROUP}'")


def case(choose: random.Random) -> None:
    """Change one file of a model, and score with it."""
    source = choose.choice(sorted(Path(os.environ[MODELS]).iterdir()))
    with tempfile.TemporaryDirectory(prefix="patchlake-fuzz-") as scratch:
        model = Path(scratch) / "model"
        shutil.copytree(source, model, ignore=shutil.ignore_patterns("_runs"))
        manifest = json.loads((model / "model.json").read_text())
        files = manifest["groups"][GROUP]["files"]
        file = choose.choice([None, *files])
        path = model / ("model.json" if file is None else file["name"])
        path.write_bytes(_changed(choose, path.read_bytes()))
        if file is not None and choose.random() < 0.5:
            _mend(model, manifest, file["role"], whole=choose.random() < 0.5)
        try:
            _use(Folder.at(str(model)))
        except ConfigError as error:
            text = str(error)
            if "\n" in text or not any(name in text for name in _names(path, model)):
                raise AssertionError(f"what is damaged is not said in a line: {text}") from error


def _names(path: Path, model: Path) -> set[str]:
    # What the manifest says of a file may be what is wrong.
    return {path.name, "model.json", str(model)}


def _changed(choose: random.Random, content: bytes) -> bytes:
    kind = choose.randrange(6)
    if kind == 0:
        return content[: choose.randrange(len(content) + 1)]
    if kind == 1:
        return choose.randbytes(choose.choice([0, 1, 8, 100]))
    changed = bytearray(content)
    for _ in range(choose.choice([1, 1, 3, 20])):
        at = choose.randrange(min(len(changed), choose.choice([16, 100, 2000, len(changed)])))
        if kind == 2:
            changed[at] ^= 1 << choose.randrange(8)
        elif kind == 3:
            changed[at : at + 8] = choose.choice([0, 1, 2**31, 2**62, 2**64 - 1]).to_bytes(
                8, "little"
            )
        elif kind == 4:
            del changed[at : at + choose.randrange(1, 9)]
        else:
            changed[at:at] = choose.choice([b"9", b"0", b"\xff", b'"', b"]", choose.randbytes(5)])
        if not changed:
            break
    return bytes(changed)


def _mend(model: Path, manifest: dict, role: str, *, whole: bool) -> None:
    import hashlib

    group = manifest["groups"][GROUP]
    file = next(file for file in group["files"] if file["role"] == role)
    content = (model / file["name"]).read_bytes()
    file |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (model / "model.json").write_text(json.dumps(manifest))
    if whole:
        read = models.read_manifest(Folder.at(str(model)))
        group["digest"] = Identity.of(read).group_digest(read.groups[GROUP].files)
        (model / "model.json").write_text(json.dumps(manifest))


def _use(folder: Folder) -> None:
    """Do what score and withdraw do with a model."""
    manifest = models.read_manifest(folder)
    require_whole(folder, manifest)
    member = Member(folder, manifest, manifest.backbone.weights)
    build(manifest.method, manifest.method_options)
    infer: Infer = Scorer([member], [member.geometry], 2**30).start(1)
    for group, record in manifest.groups.items():
        pixels = np.full((1, *member.geometry.input_size, 3), 90, np.uint8)
        scores = infer.score(pixels, group, Passed("infer", ""))
        calibration = load_calibration(folder, record)
        if scores.anomaly_maps is not None and calibration.scale is not None:
            blank = np.zeros(pixels.shape[1:3], np.float32)
            picture = overlay(pixels[0], blank, calibration.scale)
            captioned(picture, Judgement(float(scores.image_scores[0])), calibration.scale)
        load_accounts(folder, record)


if __name__ == "__main__":
    main("tests.fuzz.model", case, prepare)
