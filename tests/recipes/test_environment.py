import torch

from recipes.environment import environment, source_digest


def test_environment_names_versions_and_no_host():
    where = environment(torch.device("cpu"))
    assert where["torch"] == torch.__version__
    assert where["device"] == "cpu"
    assert not any("/" in str(value) for value in where.values())


def test_environment_without_git_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("recipes.environment.ROOT", tmp_path)
    where = environment(torch.device("cpu"))
    assert (where["commit"], where["dirty"]) == (None, None)


def test_the_digest_changes_with_python_and_cpp_sources_only(monkeypatch, tmp_path):
    monkeypatch.setattr("recipes.environment.lightning_balq.__file__", str(tmp_path / "__init__.py"))
    seen = {source_digest()}
    for name in ("a.py", "kernels/b.cpp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
        seen.add(source_digest())
    (tmp_path / "b.o").write_text("text")
    assert len(seen | {source_digest()}) == 3
