"""Faults for the chaos tests, in any Python process that has this folder on PYTHONPATH.

Python imports a module of this name when it starts. It changes nothing before one of the modules
below is imported, and then what the file named by PATCHLAKE_CHAOS (JSON) says, read at each call:

  slow     stage -> seconds that it takes longer
  seen     a folder: while a stage works, it holds a file `<stage>-<pid>`
  stage, place, do, times   when the stage gets a fragment whose path ends in `place[0]` and which
           begins at `place[1]`, it does `raise`, `kill` (itself, SIGKILL) or `oom`, `times` times
           (null: always), counted over all processes in the folder `counted`
  image    SHA-256 of encoded bytes over which decode raises, `times` times
  cgroup   for `oom`: the folder of a memory control group in which the process is killed
  clock    seconds by which the wall clock jumps every second, to and fro
"""

import hashlib
import json
import os
import signal
import sys
import time
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path


def _spec():
    return json.loads(Path(os.environ["PATCHLAKE_CHAOS"]).read_text())


def _is_due(spec):
    """Count one occasion; a file that did not exist yet is one of `times`."""
    if spec.get("times") is None:
        return True
    for number in range(spec["times"]):
        try:
            (Path(spec["counted"]) / str(number)).touch(exist_ok=False)
        except FileExistsError:
            continue
        return True
    return False


def _kill(spec):
    os.kill(os.getpid(), signal.SIGKILL)


def _raise(spec):
    raise RuntimeError("injected")


def _out_of_memory(spec):
    if spec["cgroup"]:
        (Path(spec["cgroup"]) / "cgroup.procs").write_text(str(os.getpid()))
    held = [bytearray(os.urandom(2**20)) for _ in range(200)]
    # Where there is no control group to be killed by: what the kernel does.
    _kill(held)


_DEEDS = {"kill": _kill, "raise": _raise, "oom": _out_of_memory}


@contextmanager
def _seen(spec, name):
    seen = Path(spec["seen"]) / f"{name}-{os.getpid()}"
    seen.touch()
    try:
        yield
    finally:
        seen.unlink()


def _patch_batch(module):
    original = module.advance

    def advance(name, work, table):
        def faulty(batch):
            spec = _spec()
            with _seen(spec, name):
                time.sleep(spec.get("slow", {}).get(name, 0))
                path, start = spec.get("place", ("", -1))
                is_here = batch.fragment.path.endswith(path) and batch.fragment.start == start
                if spec.get("stage") == name and is_here and _is_due(spec):
                    _DEEDS[spec["do"]](spec)
                return work(batch)

        return original(name, faulty, table)

    module.advance = advance


def _patch_decode(module):
    original = module.decode_picture

    def decode_picture(content, *limits, **options):
        spec = _spec()
        if spec.get("image") == hashlib.sha256(content).hexdigest() and _is_due(spec):
            _raise(spec)
        return original(content, *limits, **options)

    module.decode_picture = decode_picture


def _patch_runs(module):
    real = module.datetime
    started = time.monotonic()

    class Jumping(real):
        @classmethod
        def now(cls, tz=None):
            jump = _spec().get("clock", 0) * (int(time.monotonic() - started) % 3 - 1)
            return real.fromtimestamp(real.now(tz).timestamp() + jump, tz)

    module.datetime = Jumping
    clock = time.time
    time.time = lambda: (
        clock() + _spec().get("clock", 0) * (int(time.monotonic() - started) % 3 - 1)
    )


_PATCHES = {
    "patchlake.pipeline.stages.batch": _patch_batch,
    "patchlake.pipeline.stages.decode": _patch_decode,
}
_CLOCK = {"patchlake.pipeline.record.runs": _patch_runs}


class _Patching:
    def find_spec(self, name, path, target=None):  # noqa: ARG002
        patches = _PATCHES | (_CLOCK if "PATCHLAKE_CHAOS_CLOCK" in os.environ else {})
        if name not in patches:
            return None
        spec = PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_and_patch(module):
            execute(module)
            patches[name](module)

        spec.loader.exec_module = exec_and_patch
        return spec


if "PATCHLAKE_CHAOS" in os.environ:
    sys.meta_path.insert(0, _Patching())
