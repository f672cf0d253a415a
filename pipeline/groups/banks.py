"""Large banks, held outside of the workers that search them: whole on each node, or in shards."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from patchlake.pipeline.groups.files import bank_records, bank_rows
from patchlake.pipeline.groups.loading import load_bank_rows, read_bank
from patchlake.pipeline.index.choose import search_over
from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.index.sharded import Answer, ShardedSearch, ShardMember
from patchlake.pipeline.index.shards import from_shards
from patchlake.pipeline.methods.shared.workers import Held, SharedArrays
from patchlake.pipeline.model_store.models import FileRecord, GroupRecord
from patchlake.pipeline.storage.folder import Folder

# Processes that hold a shard each, in the order of the shards.
Holders = Held[ShardMember]
# A whole bank and its centred copy, in memory once on each node.
SharedBank = SharedArrays[ExactSearch]


def searched_bytes(record: GroupRecord) -> int:
    """Return the memory of a group's bank: it is searched beside a centred copy."""
    return 2 * sum(file.bytes for file in bank_records(record))


def load_dense(model: Folder, record: GroupRecord) -> ExactSearch:
    """Return the dense search over a group's bank, each file checked. Raises `ModelError`."""
    rows = load_bank_rows(model, record)
    assert rows is not None, "asked for where there is a bank"
    return ExactSearch.over(rows)


def shard_starts(
    model: Folder, record: GroupRecord, memory_budget: int
) -> list[Callable[[], ShardMember]]:
    """Return what starts each shard of a bank that does not fit one process; none where it does.

    A bank is searched beside a centred copy, so it counts twice. A shard is at least one file
    (`index.shard_bytes`). Approximate indexes are not sharded: they are for one machine's memory.
    """
    files, needed = bank_records(record), searched_bytes(record)
    if needed <= memory_budget or record.index != "exact" or len(files) == 1:
        return []
    count = min(len(files), -(-needed // memory_budget))
    rows = [len(part) for part in np.array_split(np.arange(bank_rows(record)), len(files))]
    starts: list[Callable[[], ShardMember]] = []
    for numbers in np.array_split(np.arange(len(files)), count):
        mine = [files[number] for number in numbers]
        starts.append(partial(_start_shard, model, record, mine, sum(rows[: numbers[0]])))
    return starts


def sharded_search(holders: Holders, record: GroupRecord) -> ShardedSearch:
    """Return the search over shards that were started from `shard_starts`."""
    sizes = tuple(holders.ask(_size))
    assert sum(sizes) == bank_rows(record)

    def ask(queries: np.ndarray, k: int, ignore: np.ndarray | None) -> Sequence[Answer]:
        return holders.ask(partial(_answer, queries=queries, k=k, ignore=ignore))

    def fetch(wanted: Mapping[int, np.ndarray]) -> Mapping[int, np.ndarray]:
        by_offset = {sum(sizes[:shard]): rows for shard, rows in wanted.items()}
        found = holders.ask(partial(_vectors, wanted=by_offset))
        return {shard: vectors for shard, vectors in enumerate(found) if shard in wanted}

    return ShardedSearch(sizes, ask, fetch)


def _start_shard(
    model: Folder, record: GroupRecord, files: Sequence[FileRecord], offset: int
) -> ShardMember:
    # One file of several, read as a bank of its own.
    contents = read_bank(model, record, files).values()
    banks = [from_shards({"index-00000-of-00001.faiss": content}) for content in contents]
    return ShardMember(offset, search_over(ExactSearch.over(np.concatenate(banks))))


def _size(member: ShardMember) -> int:
    return member.search.size


def _answer(member: ShardMember, queries: np.ndarray, k: int, ignore: np.ndarray | None) -> Answer:
    return member.answer(queries, k, ignore)


def _vectors(member: ShardMember, wanted: Mapping[int, np.ndarray]) -> np.ndarray:
    return member.vectors(wanted.get(member.offset, np.empty(0, np.int64)))
