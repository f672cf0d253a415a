"""The benchmark for GPUs on a CPU and tiny images: nobody here can run it as it is meant."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to run it on")
def test_the_benchmark_for_gpus_runs_on_a_cpu(images, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    spec = importlib.util.spec_from_file_location("gpu", BENCHMARKS / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    gpu = importlib.util.module_from_spec(spec)
    # As a dataclass of the module looks for it.
    monkeypatch.setitem(sys.modules, "gpu", gpu)
    spec.loader.exec_module(gpu)

    small = ["--device", "cpu", "--side", "64", "--rows", "100", "--count", "6"]
    named = ["--weights", "resnet10t.c3_in1k=untrained"]
    gpu.main([str(images), str(tmp_path), *named, *small, "--rounds", "1"])

    speed, search = capsys.readouterr().out.splitlines()
    assert speed.startswith("resnet10t.c3_in1k: stage ")
    assert "in 100 rows: 0 rows differ, 0 distances," in search
