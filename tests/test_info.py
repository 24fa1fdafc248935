"""`fusedrnn.info` says what is there, and the README's support matrix is the one the backends declare."""

from pathlib import Path

import pytest

from fusedrnn import info
from fusedrnn.dispatch import REGISTRY

README = Path(__file__).parent.parent / "README.md"


def test_report_names_every_backend_and_why_not(monkeypatch):
    monkeypatch.setattr(type(REGISTRY["torch"]), "unavailable_reason", lambda self: "the moon is full")
    report = info.report()
    assert "backend reference: available" in report
    assert "backend torch: the moon is full" in report
    for name in REGISTRY:
        assert f"backend {name}: " in report


def test_readme_has_the_present_support_matrix():
    readme = README.read_text(encoding="utf-8")
    assert info.with_matrix(readme) == readme, "run: python -m fusedrnn.info --write-readme README.md"


def test_readme_example_runs():
    _, _, rest = README.read_text(encoding="utf-8").partition("```python\n")
    example = rest.partition("```")[0]
    assert "fusedrnn.LSTM" in example
    exec(compile(example, "README.md", "exec"), {})


def test_write_readme(tmp_path, capsys):
    readme = tmp_path / "README.md"
    begin, end = "<!-- support-matrix:begin -->", "<!-- support-matrix:end -->"
    readme.write_text(f"before\n{begin}\nstale\n{end}\nafter\n")
    assert info.main(["--write-readme", str(readme)]) == 0
    assert readme.read_text() == f"before\n{begin}\n{info.support_matrix()}\n{end}\nafter\n"

    readme.write_text("no markers\n")
    with pytest.raises(SystemExit) as exit:
        info.main(["--write-readme", str(readme)])
    assert exit.value.code == 2
    assert "expected the markers" in capsys.readouterr().err
    assert readme.read_text() == "no markers\n"
