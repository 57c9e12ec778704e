"""How results are written and shown."""

import json

import pytest

from epilogue.benchmarks import report


def test_a_result_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "result.json"
    report.write(path, {"a": 1})
    with pytest.raises(TypeError):
        report.write(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    report.write(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert list(path.parent.iterdir()) == [path]


def test_no_cell_ends_its_row():
    assert report.markdown([("a", "b"), ("x | y", "z")]) == "| a | b |\n| --- | --- |\n| x \\| y | z |"
