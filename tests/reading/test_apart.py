"""Files are read in a process whose death costs a file."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchlake.pipeline.errors import FileDamaged, InputChanged, TableError
from patchlake.pipeline.reading.apart import Call, apart, each
from patchlake.pipeline.storage.folder import Folder

HERE = Folder.at("/")


def calls(*some: tuple[object, object]) -> list[Call]:
    return [Call(function, item, f"file {n}") for n, (function, item) in enumerate(some)]


def test_the_results_come_in_order():
    texts = [(len, "a" * n) for n in range(600)]
    assert list(each(HERE, calls(*texts))) == list(range(600))


@pytest.mark.parametrize("bad", [0, 1, 3])
def test_the_item_over_which_the_process_dies_is_found_and_the_others_are_done(bad):
    some = [(len, "x"), (len, "xy"), (len, "xyz")]
    some.insert(bad, (os.abort, None) if bad == 9 else (signal.raise_signal, signal.SIGSEGV))
    found = list(each(HERE, calls(*some)))
    died = found.pop(bad)
    assert found == [1, 2, 3]
    assert isinstance(died, FileDamaged)
    assert f"file {bad} cannot be read: " in str(died)
    assert "SIGSEGV" in str(died)


def test_every_item_may_kill():
    found = list(each(HERE, calls(*[(os._exit, 7)] * 3)))
    assert [str(one).partition(":")[0] for one in found] == [
        f"file {n} cannot be read" for n in range(3)
    ]


def test_what_is_said_at_the_end_is_told():
    with pytest.raises(
        FileDamaged, match=r"^x cannot be read: the process that reads it ends with SIGABRT"
    ):
        apart(HERE, Call(signal.raise_signal, signal.SIGABRT, "x"))


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize(
    ("function", "item", "raised", "told"),
    [
        (int, "a", FileDamaged, "x cannot be read: invalid literal"),
        (pq.read_metadata, pa.BufferReader(b"PAR1"), FileDamaged, "x cannot be read: "),
        (open, "/nowhere/at/all", FileNotFoundError, "No such file"),
    ],
)
def test_errors_name_the_file(function, item, raised, told, isolated, request):
    if not isolated:
        request.getfixturevalue("read_here")
    elif isinstance(item, pa.BufferReader):
        pytest.skip("it is not sent")
    with pytest.raises(raised, match=told):
        apart(HERE, Call(function, item, "x"))


def raising(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("error", [TableError("its schema"), InputChanged("it changed")])
def test_errors_that_say_enough_are_left_alone(error):
    with pytest.raises(type(error), match=str(error)):
        apart(HERE, Call(raising, error, "x"))


def test_a_table_comes_back_as_it_was():
    table = pa.table({"a": pa.chunked_array([[1, 2], [3]]), "b": ["x", None, "z"]})
    dictionary = table.append_column("c", table["b"].dictionary_encode())
    for one in (table, table.slice(1, 1), table.slice(0, 0), dictionary):
        assert apart(HERE, Call(_same, one, "x")).equals(one)


def _same(table: pa.Table) -> pa.Table:
    return table


def test_it_knows_neither_torch_nor_ray():
    loaded = apart(HERE, Call(_loaded, ("torch", "ray", "timm", "faiss"), "x"))
    assert loaded == []


def _loaded(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if name in sys.modules]


def test_it_ends_with_its_parent_whatever_it_does(tmp_path: Path):
    code = (
        "import threading, time\n"
        "from patchlake.pipeline.reading.apart import *\n"
        "from patchlake.pipeline.storage.folder import Folder\n"
        "from tests.reading.test_apart import sleep\n"
        "threading.Thread(target=apart, args=(Folder.at('/'), Call(sleep, 60, 'x'))).start()\n"
        "time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 30
        while not (children := psutil.Process(parent.pid).children()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # It takes no signal that is meant for the job.
        time.sleep(1)
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 10
    while any(_runs(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(child: psutil.Process) -> bool:
    try:
        # Nobody may be there to take note of its end.
        return child.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def test_a_partial_of_a_method_can_be_sent(tmp_path: Path):
    folder = Folder.at(str(tmp_path))
    folder.write("a", b"content")
    read = partial(folder.read, at_most=3)
    assert apart(folder, Call(read, "a", "x")) == b"con"


def _variable(name: str) -> str:
    return os.environ[name]


def test_a_child_has_the_environment_of_its_call(tmp_path, monkeypatch):
    """Credentials are found there."""
    for value in ("one", "two"):
        monkeypatch.setenv("PATCHLAKE_TEST", value)
        assert apart(Folder(str(tmp_path)), Call(_variable, "PATCHLAKE_TEST", "x")) == value
