import torch

from benchmarks.records import results_path


def test_results_path_names_benchmark_device_and_torch(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    assert results_path("study_defaults", torch.device("cpu")).name == "study_defaults--cpu--torch2.13.0.jsonl"
