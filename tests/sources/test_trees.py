"""Trees of folders: splits, labels, groups and masks by name, and what is refused."""

from pathlib import Path

import pyarrow as pa
import pytest

from patchlake.pipeline.config import ColumnSettings
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.lake.selection import labels_mean
from patchlake.pipeline.sources.placing import Words
from patchlake.pipeline.sources.sources import Listing
from patchlake.pipeline.sources.trees import guess_layout, list_folder, list_tree
from patchlake.pipeline.storage.folder import NULL_PARTITION, Folder

WORDS = Words.of(ColumnSettings())
NO_MASK = None


@pytest.fixture
def root(tmp_path: Path) -> Folder:
    return Folder.at(str(tmp_path / "source"))


def _write(root: Folder, *names: str) -> None:
    for name in names:
        root.write(name, name.encode())


def _tree(root: Folder, group: str | None = None) -> Listing:
    entries = root.find()
    assert guess_layout(root.root, entries, WORDS) == "mvtec"
    return list_tree(root, entries, WORDS, (group, "source"))


def _rows(listing: Listing) -> dict[str, tuple[object, ...]]:
    return {i.name: (i.group, i.split, i.label, i.mask) for i in listing.images}


@pytest.mark.parametrize(
    ("train", "test", "truth", "good", "bad", "mask"),
    [
        ("train", "test", "ground_truth", "good", "crack", "0_mask.png"),
        ("train", "test", "ground_truth", "ok", "ko", "0.png"),
        ("Train", "Test", "Ground_Truth", "Good", "hole", "0_GT.BMP"),
        ("training", "validation", "masks", "normal", "anomaly", "0-label.tif"),
        ("train", "val", "gt", "OK", "NG", "mask_0.jpg"),
        ("train", "test", "groundtruth", "pass", "fail", "0.mask.png"),
        ("_train", "test.", "Masks_", "O.K.", "N.G.", "0.png"),
        ("train", "hold_out", "gt", "OK_", "k.o.", "0.png"),
        ("\uff54rain", "Test", "gt", "\uff2f\uff2b", "\uff2e\uff27", "0.png"),
    ],
)
@pytest.mark.parametrize("above", ["", "tile/", "plant 7/tile/"])
def test_a_tree_of_splits_is_read_by_its_words(root, train, test, truth, good, bad, mask, above):
    names = [f"{train}/{good}/0.png", f"{test}/{good}/0.png", f"{test}/{bad}/0.png"]
    _write(root, *(above + name for name in (*names, f"{truth}/{bad}/{mask}")))
    listing = _tree(root)
    group = above.rstrip("/") or "source"
    assert _rows(listing) == {
        above + names[0]: (group, train, good, None),
        above + names[1]: (group, test, good, None),
        above + names[2]: (group, test, bad, f"{above}{truth}/{bad}/{mask}"),
    }
    assert (listing.skipped, listing.notes) == ([], [])


def test_a_tree_without_splits(root):
    _write(root, "cup/good/0.png", "cup/broken/1.png", "nut/good/0.png")
    assert _rows(_tree(root)) == {
        "cup/good/0.png": ("cup", None, "good", None),
        "cup/broken/1.png": ("cup", None, "broken", None),
        "nut/good/0.png": ("nut", None, "good", None),
    }


@pytest.mark.parametrize("name", ["good", "O.K.", "_good", "OK_", "\uff2f\uff2b", "-1", "okay"])
def test_a_folder_means_good_exactly_if_a_label_does(root, name):
    _write(root, f"{name}/0.png")
    means = labels_mean(pa.chunked_array([[name]], pa.string()), ColumnSettings()).to_pylist()
    layout = guess_layout(root.root, root.find(), WORDS)
    assert (layout == "mvtec") == (means == ["good"])


def test_folders_that_only_say_what_files_are_are_passed_over(root):
    """VisA."""
    _write(root, "candle/Data/Images/Normal/0.JPG", "candle/Data/Images/Anomaly/0.JPG")
    _write(root, "candle/Data/Masks/Anomaly/0.png")
    assert _rows(_tree(root)) == {
        "candle/Data/Images/Normal/0.JPG": ("candle", None, "Normal", None),
        "candle/Data/Images/Anomaly/0.JPG": (
            *("candle", None, "Anomaly"),
            "candle/Data/Masks/Anomaly/0.png",
        ),
    }


def test_splits_above_the_groups(root):
    _write(root, "train/cup/good/0.png", "test/cup/crack/1.png", "ground_truth/cup/crack/1.png")
    assert _rows(_tree(root)) == {
        "train/cup/good/0.png": ("cup", "train", "good", None),
        "test/cup/crack/1.png": ("cup", "test", "crack", "ground_truth/cup/crack/1.png"),
    }


@pytest.mark.parametrize(
    ("masks", "of"),
    [
        (["train/masks/ng/0.png"], {"train": "train/masks/ng/0.png", "test": None}),
        (["masks/test/ng/0_mask.png"], {"train": None, "test": "masks/test/ng/0_mask.png"}),
        (
            ["Train/masks/ng/0.png", "test/masks/ng/0.png"],
            {"train": "Train/masks/ng/0.png", "test": "test/masks/ng/0.png"},
        ),
        (["test/masks/0.png"], {"train": None, "test": "test/masks/0.png"}),
        (["masks/ng/0.png", "test/masks/ng/0.png"], {"train": "masks/ng/0.png", "test": None}),
    ],
)
def test_a_mask_of_a_split_belongs_to_an_image_of_that_split(root, masks, of):
    """The last one: two masks are none, wherever they lie."""
    images = ["train/images/ng/0.png", "test/images/ng/0.png", "train/images/ok/1.png"]
    _write(root, *images, *masks)
    rows = _rows(_tree(root))
    assert {split: rows[f"{split}/images/ng/0.png"][3] for split in of} == of


def test_a_mask_in_a_folder_of_its_images_name(root):
    """MVTec LOCO; with two masks there is none."""
    _write(root, "train/good/0.png", "test/logical/0.png", "test/logical/1.png")
    _write(
        root, *(f"ground_truth/logical/{name}" for name in ("0/000.png", "1/000.png", "1/1.png"))
    )
    listing = _tree(root)
    assert _rows(listing)["test/logical/0.png"][3] == "ground_truth/logical/0/000.png"
    assert _rows(listing)["test/logical/1.png"][3] is None
    assert "test/logical/1.png has 2 masks, and gets none" in listing.notes[0]


def test_masks_beside_their_images_are_no_images(root):
    """KolektorSDD: also in a plain folder."""
    _write(root, "0.jpg", "0_label.bmp", "1.jpg", "label.jpg")
    listing = list_folder(root, root.find(), (None, "parts"))
    assert _rows(listing) == {
        "0.jpg": ("parts", None, None, "0_label.bmp"),
        "1.jpg": ("parts", None, None, None),
        "label.jpg": ("parts", None, None, None),
    }


def test_what_has_no_partner_and_what_lies_elsewhere_is_said(root):
    _write(root, "train/good/0.png", "test/crack/0.png", "test/crack/1.png", "license.txt")
    _write(root, "ground_truth/crack/0.png", "ground_truth/crack/7.png", "train/readme.txt")
    listing = _tree(root)
    assert sorted(_rows(listing)) == ["test/crack/0.png", "test/crack/1.png", "train/good/0.png"]
    assert {one.why for one in listing.skipped} == {"outside the layout"}
    assert [one.line for one in listing.skipped] == [
        f"{root.root}/{name}: not below a folder of a split and of a label"
        for name in ("license.txt", "train/readme.txt")
    ]
    assert listing.notes == [
        f"{root.root}: no mask for 1 defective images: test/crack/1.png",
        f"{root.root}: no image for 1 masks: ground_truth/crack/7.png",
    ]


def test_a_split_within_another_is_refused(root):
    _write(root, "train/good/0.png", "train/test/good/1.png")
    with pytest.raises(ConfigError, match=r"\['train', 'test'\]: is it to train on or to test on"):
        _tree(root)


@pytest.mark.parametrize(
    "names",
    [
        ["train/normal/ok/1.png", "test/normal/ng/2.png"],
        ["train/normal/ng/2.png", "train/normal/1.png"],
        ["ok/ng/1.png", "ok/1.png"],
        ["ok/line 4/images/NG/1.png", "ok/2.png"],
        ["good/normal/1.png", "good/scratch/2.png"],
        ["normal/train/ok/1.png", "normal/test/ng/2.png"],
        ["bad/good/1.png", "bad/2.png"],
    ],
)
def test_a_label_within_another_of_which_one_is_good_is_refused(root, names):
    _write(root, *names)
    with pytest.raises(ConfigError, match=r"which of them is its label\? .*a manifest") as raised:
        _tree(root)
    said = str(raised.value)
    assert any(f"{root.root}/{name} lies below folders [" in said for name in names)
    assert "\n" not in said


def test_a_kind_of_defect_within_a_folder_of_defects_is_a_defect(root):
    _write(root, "ok/1.png", "ok/night/2.png", "ng/3.png", "ng/broken/4.png")
    assert [row[2] for row in _rows(_tree(root)).values()] == ["ng", "ng", "ok", "ok"]
    words = Words.of(ColumnSettings(good_labels=("ok",)))
    _write(root, "ok/normal/5.png")
    assert len(list_tree(root, root.find(), words, (None, "source")).images) == 5


def test_good_folders_at_two_depths_are_refused(root):
    _write(root, "good/0.png", "cup/good/1.png")
    with pytest.raises(ConfigError, match=r"at several depths, as in 'good/0.png' and 'cup/good"):
        _tree(root)


@pytest.mark.parametrize(
    "names",
    [
        ["good/train/0.png", "good/test/1.png"],
        ["good/train/0.png", "bad/test/1.png"],
        ["cup/OK/training/0.png", "cup/ko/val/1.png", "cup/masks/1.png"],
    ],
)
def test_a_label_above_the_splits_is_refused(root, names):
    _write(root, *names)
    with pytest.raises(ConfigError, match=r"above the split .*as (train|test|training)/(good|OK),"):
        _tree(root)


@pytest.mark.parametrize(
    "names",
    [
        ["parts/0.png", "ng/1.png"],
        ["parts/0.png", "masks/0.png"],
        ["train/0.png", "test/1.png"],
        ["train/a/0.png", "train/defect/1.png"],
    ],
)
def test_folders_that_mean_something_and_none_that_means_good_are_refused(root, names):
    _write(root, *names)
    with pytest.raises(ConfigError, match=r"none whose name says .*--layout folder"):
        guess_layout(root.root, root.find(), WORDS)
    words = Words.of(ColumnSettings(good_labels=("parts", "a", "train")))
    if names[0].startswith(("parts", "train/a")):
        assert guess_layout(root.root, root.find(), words) == "mvtec"


def test_a_plain_folder_is_one_group_without_labels(root):
    _write(root, "b.jpg", "a/c.png")
    assert guess_layout(root.root, root.find(), WORDS) == "folder"
    assert _rows(list_folder(root, root.find(), (None, "line 4"))) == {
        "a/c.png": ("line 4", None, None, None),
        "b.jpg": ("line 4", None, None, None),
    }


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("split=train/good/1.png", ("source", "train", "good")),
        ("tile/split=train/good/1.png", ("tile", "train", "good")),
        ("split=cal/tile/good/1.png", ("tile", "cal", "good")),
        ("train/label=ok/1.png", ("source", "train", "ok")),
        ("label=ok/1.png", ("source", None, "ok")),
        ("label=hairline%20crack/1.png", ("source", None, "hairline crack")),
        ("tile/label=ok/night/1.png", ("tile", None, "ok")),
        ("group=a/1.png", ("a", None, None)),
        ("group=a/b/1.png", ("a", None, None)),
        ("split=test/1.png", ("source", "test", None)),
        ("group=a/split=test/label=good/1.png", ("a", "test", "good")),
        ("Label=OK/Split=Test/Group=a/1.png", ("a", "Test", "OK")),
        ("group=a/line 4/good/1.png", ("a", None, "good")),
        (f"split={NULL_PARTITION}/label={NULL_PARTITION}/1.png", ("source", None, None)),
        (f"group={NULL_PARTITION}/good/1.png", ("source", None, "good")),
    ],
)
def test_folders_of_hive_partitions_say_what_their_keys_say(root, name, row):
    _write(root, name)
    listing = _tree(root)
    assert _rows(listing) == {name: (*row, None)}
    assert (listing.skipped, listing.notes) == ([], [])


def test_images_of_no_label_are_not_called_defective(root):
    _write(root, "group=a/1.png", "group=a/masks/2.png")
    listing = list_tree(root, root.find(), WORDS, (None, "source"))
    assert listing.notes == [f"{root.root}: no image for 1 masks: group=a/masks/2.png"]


def test_masks_of_hive_partitions(root):
    _write(root, "group=a/split=test/label=ng/0.png", "group=b/split=test/label=ng/0.png")
    _write(root, "masks/group=a/split=test/label=ng/0.png", "misc/1.png")
    listing = _tree(root)
    assert [row[3] for row in _rows(listing).values()] == [
        "masks/group=a/split=test/label=ng/0.png",
        None,
    ]
    assert [one.line for one in listing.skipped] == [
        f"{root.root}/misc/1.png: not below a folder of a split and of a label"
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("split=train/test/good/1.png", "is it to train on or to test on"),
        ("split=train/split=test/good/1.png", "is it to train on or to test on"),
        ("label=ok/ng/1.png", "which of them is its label"),
        ("label=crack/good/1.png", "which of them is its label"),
        ("label=ok/label=ng/1.png", "says label= more than once"),
        ("group=a/group=b/good/1.png", "says group= more than once"),
        ("class=ok/1.png", "'class=ok', whose key is none of split, label, group"),
        ("set=train/1.png", "'set=train', whose key is none of"),
        ("split=train/ng/1.png", "none whose name says"),
    ],
)
def test_folders_of_hive_partitions_that_say_two_things_or_nothing_known_are_refused(
    root, name, said
):
    _write(root, name)
    with pytest.raises(ConfigError, match=said) as raised:
        _tree(root)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("paths", "name"),
    [
        (("train-good/1.png", "test-crack/2.png"), "test-crack"),
        (("defect_1/1.png", "part/2.png"), "defect_1"),
        (("Train_Set/good/1.png", "Test_Set/good/2.png"), "Test_Set"),
        (("good images/1.png", "others/2.png"), "good images"),
        (("!ok/1.png",), "!ok"),
        (("ok\u2044ng/1.png",), "ok\u2044ng"),
    ],
)
def test_a_word_within_a_name_is_no_name_of_a_part(paths, name, tmp_path):
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    entries = Folder(str(tmp_path)).find()
    with pytest.raises(ConfigError, match=f"has a folder '{name}', whose name holds"):
        guess_layout(str(tmp_path), entries, Words.of(ColumnSettings()))


def test_names_that_only_resemble_a_word_are_names_of_parts(tmp_path):
    for path in ("contest/1.png", "trainer/1.png", "goods/1.png", "line-3/1.png", "book/1.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    entries = Folder(str(tmp_path)).find()
    assert guess_layout(str(tmp_path), entries, Words.of(ColumnSettings())) == "folder"
