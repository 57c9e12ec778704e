"""Progress: a bar on a terminal, lines elsewhere."""

import itertools

import pytest

pytest.importorskip("tqdm")
from epilogue.benchmarks import progress


def test_items_with_names_get_a_line_each_before_they_run(capsys):
    for item in progress.progress("ab", "counting", 2, "block", str.upper):
        assert capsys.readouterr().err == f"counting: block {1 + 'ab'.index(item)} of 2, {item.upper()}\n"
    assert capsys.readouterr().err == ""


def test_others_get_a_line_every_few_seconds(monkeypatch, capsys):
    seconds = itertools.count(0, 2)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    assert list(progress.progress(range(7), "training", 7, "step")) == [*range(7)]
    assert capsys.readouterr().err.splitlines() == [
        "training: 7 steps",
        "training: step 3 of 7, 6 s",
        "training: step 6 of 7, 12 s",
    ]


@pytest.mark.parametrize("name", [None, str.upper])
def test_a_terminal_gets_a_bar(name, monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    assert list(progress.progress("ab", "counting", 2, "block", name)) == ["a", "b"]
    err = capsys.readouterr().err
    assert "counting: 100%" in err
    assert ("B]" in err) == (name is not None)
