"""What an image is known by, so that none is compared with itself or with its own part."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8, UInt64

from patchlake.pipeline.maths.likeness import alike_limit, alike_pairs

_BYTES = 8
# A part_id that is none. Of 2^64 texts one has this number.
_NO_PART = 0
_PREFIX = "marks."


@dataclass(frozen=True)
class Marks:
    """Of images, in some order: which file, which part, and how it looks from afar."""

    # The first 8 bytes of the SHA-256 of each file; 0 where it was not kept.
    contents: UInt64[np.ndarray, " images"]
    # Of `part_id`, likewise; 0: it has none.
    parts: UInt64[np.ndarray, " images"]
    # `images.thumbnails.thumbnail`.
    thumbnails: UInt8[np.ndarray, "images cells"]

    @classmethod
    def of(
        cls,
        sha256s: Sequence[str],
        part_ids: Sequence[str | None],
        thumbnails: Sequence[bytes],
    ) -> "Marks":
        """Return those of images, by what the stages know of them."""
        grey = np.frombuffer(b"".join(thumbnails), np.uint8)
        return cls(
            contents=np.array([int(one[: 2 * _BYTES], 16) for one in sha256s], np.uint64),
            parts=np.array(list(map(_number, part_ids)), np.uint64),
            thumbnails=grey.reshape(len(sha256s), -1) if len(sha256s) else np.empty((0, 0), "u1"),
        )

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> "Marks":
        """Return those that `to_state` gave."""
        parts, thumbnails = (state[f"{_PREFIX}{name}"] for name in ("parts", "thumbnails"))
        return cls(np.zeros(len(parts), np.uint64), parts, thumbnails)

    def to_state(self) -> dict[str, np.ndarray]:
        """Return them as arrays by name, for a model's state.

        But for the contents: what is outside of a region of interest changes them, and nothing
        else, and an image that is there again looks as it did.
        """
        return {
            f"{_PREFIX}parts": self.parts,
            f"{_PREFIX}thumbnails": self.thumbnails,
        }

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.contents)

    def take(self, which: slice | np.ndarray) -> "Marks":
        """Return those of some images: a slice, numbers or truth values."""
        return Marks(self.contents[which], self.parts[which], self.thumbnails[which])

    def joined(self, others: "Marks") -> "Marks":
        """Return both, the others' last."""
        return Marks(
            np.concatenate([self.contents, others.contents]),
            np.concatenate([self.parts, others.parts]),
            np.concatenate([self.thumbnails, others.thumbnails]),
        )

    def lowest(self, at_most: int) -> Int64[np.ndarray, " chosen"]:
        """Return the numbers of images, a sample that hangs on what they show alone.

        They are those of the lowest SHA-256 of thumbnail and part, in its order; of images of which
        both are equal, the one of the lowest content.
        """
        digests = (
            hashlib.sha256(looks.tobytes() + part.tobytes()).digest()[:_BYTES]
            for looks, part in zip(self.thumbnails, self.parts, strict=True)
        )
        keys = np.array([int.from_bytes(one, "big") for one in digests], np.uint64)
        order = np.lexsort((self.contents, keys))
        _, first = np.unique(keys[order], return_index=True)
        chosen: np.ndarray = order[first[:at_most]].astype(np.int64)
        return chosen

    @property
    def limit(self) -> Float32[np.ndarray, " one"]:
        """What `own` takes: up to which difference these images look alike."""
        return np.array([alike_limit(self.thumbnails)], np.float32)

    def own(
        self, others: "Marks", limit: Float32[np.ndarray, " one"]
    ) -> Bool[np.ndarray, "images others"]:
        """Return which others are each image itself, or another shot of its part.

        By `part_id` where both have one, else by how they look (`maths.likeness`).

        Args:
            others: The images that these are compared with.
            limit: Of the group's images.
        """
        mine, theirs = self.parts[:, np.newaxis], others.parts[np.newaxis]
        are_named = (mine != _NO_PART) & (theirs != _NO_PART)
        alike = alike_pairs(self.thumbnails, others.thumbnails, float(limit[0]))
        return np.asarray(np.where(are_named, mine == theirs, alike))


def _number(part_id: str | None) -> int:
    if part_id is None:
        return _NO_PART
    return int.from_bytes(hashlib.sha256(part_id.encode()).digest()[:_BYTES], "big")
