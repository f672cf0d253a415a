"""The BLAS kernel for this processor, chosen before numpy is imported.

The OpenBLAS inside numpy and faiss knows processors by family. On an AMD processor with AVX-512
that it does not know yet it falls back to its Haswell kernels, reported at half the speed on Zen 5.
On the Zen 4 of docs/benchmarks.md numpy's OpenBLAS chose SKYLAKEX itself, and nothing is gained.
The SKYLAKEX kernels need nothing but AVX-512 F, DQ, BW, VL and CD. The
newer COOPERLAKE and SAPPHIRERAPIDS are not chosen: the older OpenBLAS inside faiss does not know
those names, and falls back much further.

Results do not depend on the kernel (docs/architecture.md, "Same bytes"). A Ray that is started here
inherits the choice. Nodes of a cluster may differ, so each chooses before its Ray is started
(cluster.yaml): `eval "$(python -m patchlake.jobs.blas)"`.
"""

import os
import shlex
import sys
from pathlib import Path

_VARIABLE = "OPENBLAS_CORETYPE"
_NEEDED = {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd"}


def choose_kernel(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Set OPENBLAS_CORETYPE where it helps and is not set; return its value, None if not set.

    Must run before numpy is imported.
    """
    if _VARIABLE not in os.environ and _is_unknown_to_openblas(cpuinfo):
        os.environ[_VARIABLE] = "SKYLAKEX"
    return os.environ.get(_VARIABLE)


def _is_unknown_to_openblas(cpuinfo: Path) -> bool:
    try:
        described = cpuinfo.read_text()
    except OSError:
        return False
    # One paragraph a core; all of them must agree, as a thread may run on any.
    cores = [core for core in described.split("\n\n") if "flags" in core]
    return bool(cores) and all("AuthenticAMD" in core and _flags(core) >= _NEEDED for core in cores)


def _flags(core: str) -> set[str]:
    lines = (line.partition(":") for line in core.splitlines())
    return {flag for name, _, value in lines if name.strip() == "flags" for flag in value.split()}


if __name__ == "__main__":
    chosen = choose_kernel()
    if chosen:
        sys.stdout.write(f"export {_VARIABLE}={shlex.quote(chosen)}\n")
