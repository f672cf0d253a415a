"""A digest that a table of ours carries in its own schema: what was changed is not believed."""

import hashlib

import pyarrow as pa

_SEAL = b"patchlake.sha256"
# Rows of one batch, so that the digest does not depend on how a table lies in memory.
_BATCH = 16_384


class _Digest:
    """A file that only hashes what is written to it."""

    closed = False

    def __init__(self, begin: str) -> None:
        self.sha256 = hashlib.sha256(begin.encode())

    def write(self, content: bytes) -> int:
        self.sha256.update(content)
        return len(content)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing is open."""


def sealed(table: pa.Table, of: str) -> pa.Table:
    """Return the table with its digest. Linear in its bytes, and holds none of them.

    Args:
        table: Whatever metadata its schema has is dropped.
        of: What it is the table of: another one does not pass for it.
    """
    return table.replace_schema_metadata({_SEAL: _digest(table, of)})


def is_sealed(table: pa.Table) -> bool:
    """Return whether a table carries a digest, right or wrong."""
    return _SEAL in (table.schema.metadata or {})


def unsealed(table: pa.Table, of: str) -> pa.Table:
    """Return a table without its digest. Raises `ValueError` if it has none, or another one."""
    found = (table.schema.metadata or {}).get(_SEAL)
    if found != _digest(table, of).encode():
        raise ValueError("its contents do not have its digest")
    return table.replace_schema_metadata(None)


def _digest(table: pa.Table, of: str) -> str:
    digest = _Digest(of)
    plain = table.replace_schema_metadata(None).combine_chunks()
    with pa.ipc.new_stream(pa.PythonFile(digest, "w"), plain.schema) as writer:
        writer.write_table(plain, max_chunksize=_BATCH)
    return digest.sha256.hexdigest()
