"""A signal ends the process, whatever it is doing: small scripts that do one thing each."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from patchlake.pipeline import stopping

ROOT = Path(__file__).parents[2]

# Says "ready" where the signal is to come. The last resort comes after half a second, not eight.
SCRIPT = """
import hashlib, os, subprocess, sys, threading, time
from pathlib import Path
from patchlake.pipeline import stopping
from patchlake.pipeline.storage import disk

def ready():
    print("ready", flush=True)

def in_c():
    ready()
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 2**31 - 1)  # minutes, without the GIL

def work():
    stopping.GRACE_S = 0.5
    stopping.working()
    with stopping.abruptly(disk.remove_unfinished):
{body}
    return 0

stopping.run(work)
"""
BODIES = {
    "waiting": "ready(); time.sleep(60)",
    "waiting for a thread": "thread = threading.Thread(target=in_c); thread.start(); thread.join()",
    "in C code": "in_c()",
    "starting": "stopping._State.phase = 'starting'; in_c()",
    "ending": "stopping._State.phase = 'ending'; in_c()",
    "leaving": "import atexit; atexit.register(in_c)",
    "a library that swallows it": """
ready()
while True:
    try:
        time.sleep(60)
    except BaseException:
        pass
""",
    "a finaliser, where Python drops it": """
stopping.GRACE_S = 60
class Slow:
    def __del__(self):
        ready()
        time.sleep(60)
slow = Slow()
del slow
time.sleep(60)
""",
    "with a child that has a child": """
command = "sleep 61 & echo $!; wait"
child = subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, start_new_session=True)
print(child.pid, int(child.stdout.readline()), flush=True)
in_c()
""",
    "half a file": """
with disk.writing(Path("half.bin")) as file:
    file.write(b"x" * 100_000)
    in_c()
""",
    "a scratch folder": """
with disk.scratch("patchlake-scratch-") as folder:
    print(folder, flush=True)
    in_c()
""",
    "a reader that does not read": """
ready()
while True:
    os.write(2, b"x" * 1000)
""",
}

SIGNALS = (signal.SIGINT, signal.SIGTERM)
MOMENTS_S = (0, 0.02, 0.1, 0.5, 1)


def start(body: str, folder: Path, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(body=textwrap.indent(body, " " * 8))],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def until_ready(process: subprocess.Popen[str]) -> list[str]:
    said = []
    while (line := process.stdout.readline()) != "ready\n":
        assert line, process.communicate()
        said += line.split()
    return said


@pytest.mark.parametrize("name", BODIES)
def test_one_signal_is_enough(name: str, tmp_path: Path):
    # Both take one way: each has half of what they may find.
    body, number = BODIES[name], SIGNALS[list(BODIES).index(name) % 2]
    with start(body, tmp_path) as process:
        said = until_ready(process)
        time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(timeout=10) == 4
        err = process.stderr.read()
    assert "Traceback" not in err
    if "os.write" not in body:
        [line] = err.splitlines()
        assert line.endswith(f" stopped by {number.name}; the same command goes on from here")
    assert list(tmp_path.iterdir()) == []
    for left in said:
        is_left = Path(left).exists() if left.startswith("/") else stopping._look_up(int(left))
        assert not is_left


def test_a_second_signal_ends_it_at_once(tmp_path: Path):
    with start(f"stopping.GRACE_S = 60; {BODIES['in C code']}", tmp_path) as process:
        until_ready(process)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=2) == 4
        assert process.stderr.read().count("stopped by SIGTERM") == 1


def test_what_children_start_meanwhile_ends_as_well(tmp_path: Path):
    """A raylet that starts its agent in that moment; here one that starts hundreds a second."""
    mark = str(tmp_path / "mark")
    body = f"""
os.environ["PATCHLAKE_TEST"] = {mark!r}
busy = "for _ in $(seq 500); do sleep 9 & sleep 0.002; done"
subprocess.Popen(["sh", "-c", busy])
time.sleep(0.3)
in_c()
"""
    with start(body, tmp_path) as process:
        until_ready(process)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 4
    left = _with_environment(mark)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def _with_environment(text: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if text.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            # It has ended, or is another user's.
            continue
    return found


def test_a_signal_that_was_ignored_where_it_was_started_counts(tmp_path: Path):
    ignored = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    with start(BODIES["waiting"], tmp_path, **ignored) as process:
        until_ready(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 4


def test_forked_children_take_signals_as_ever(tmp_path: Path):
    body = """
pid = os.fork()
if pid == 0:
    ready()
    time.sleep(60)
    os._exit(0)
os.kill(pid, 15)
return os.WTERMSIG(os.waitpid(pid, 0)[1])
"""
    with start(body, tmp_path) as process:
        assert process.wait(timeout=10) == signal.SIGTERM


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--help"], 0), (["status", "/nonexistent"], 2), (["no-verb"], 2)]
)
def test_the_exit_code_of_what_happened(arguments: list[str], code: int):
    done = subprocess.run(
        [sys.executable, "-m", "patchlake", *arguments],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert done.stdout or done.stderr


@pytest.mark.parametrize("moment_s", MOMENTS_S)
def test_a_signal_while_it_imports(moment_s: float):
    number = SIGNALS[MOMENTS_S.index(moment_s) % 2]
    # Of all verbs, one that imports for longer than the last moment.
    command = [sys.executable, "-m", "patchlake", "score", "/a", "/b", "/c"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        # Before that it is the interpreter that starts, which is not ours.
        while not _blocks(process.pid, number):
            time.sleep(0.001)
        time.sleep(moment_s)
        process.send_signal(number)
        assert process.wait(timeout=10) == 4
        [*before, line] = process.stderr.read().splitlines()
    assert [text.partition(" ")[2] for text in before] in ([], ["reading what there is in /a"])
    assert line.endswith(f" stopped by {number.name}; the same command goes on from here")


def _blocks(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    [blocked] = [line.split()[1] for line in status.splitlines() if line.startswith("SigBlk")]
    return bool(int(blocked, 16) >> (number - 1) & 1)
