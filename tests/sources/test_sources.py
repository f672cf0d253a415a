"""The cut of what is ingested into files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchlake.pipeline.sources import sources
from patchlake.pipeline.sources.sources import Places, SourceImage


def _image(number: int, group: str, size: int) -> SourceImage:
    return SourceImage(str(number), "/", f"{number}.png", "1", size, group)


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "ä/.."]), st.integers(0, 120))),
    st.integers(1, 200),
)
def test_shards_hold_every_image_once_by_group_and_within_the_size(described, shard_bytes):
    images = [_image(i, group, size) for i, (group, size) in enumerate(described)]
    shards = list(sources.shards(images, shard_bytes))
    assert sorted((i for shard in shards for i in shard), key=images.index) == images
    for group in {image.group for image in images}:
        of_group = [shard for shard in shards if shard[0].group == group]
        assert [i for shard in of_group for i in shard] == [i for i in images if i.group == group]
        sizes = [sum(image.bytes for image in shard) for shard in of_group]
        for shard, size in zip(of_group, sizes, strict=True):
            assert size <= shard_bytes or len(shard) == 1
        # No shard ends before it must: the next image did not fit.
        for size, following in zip(sizes, of_group[1:], strict=False):
            assert size + following[0].bytes > shard_bytes


def test_places_of_a_disk_are_where_folders_lead_and_others_are_their_names(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    (tmp_path / "real/link.png").symlink_to(tmp_path / "real/a.png")
    of = Places().of
    assert of(f"{tmp_path}/alias/a.png") == of(f"{tmp_path}/real/a.png")
    assert of(f"{tmp_path}/alias/") == of(f"{tmp_path}/real/")
    assert of(f"{tmp_path}/real/link.png") != of(f"{tmp_path}/real/a.png")
    assert of("/a.png") == "/a.png"
    assert of("s3://lake/../a.png") == "s3://lake/../a.png"


@pytest.mark.parametrize(
    ("image_id", "has"),
    [
        ("a.png", False),
        ("sub/a.png", False),
        ("/x/sub/a.png", False),
        ("ub/a.png", True),
        ("7", True),
    ],
)
def test_an_id_that_says_where_the_file_is_is_not_its_own(image_id, has):
    assert SourceImage(image_id, "/x", "sub/a.png", "1", 1, "g").has_own_id == has
