"""The reference that `make docs` makes from the docstrings."""

import inspect
import re

import pytest

import epilogue
import epilogue.nn

DOCUMENTED = (epilogue.backend, epilogue.explain, epilogue.resolve, epilogue.nn.fuse, epilogue.nn.unfuse)


@pytest.mark.parametrize("function", DOCUMENTED, ids=lambda function: function.__name__)
def test_a_docstring_names_each_argument_and_what_is_raised(function):
    text = inspect.getdoc(function)
    arguments = re.search(r"^Args:\n((?:    .*\n)+)", text, re.MULTILINE)
    assert arguments
    parameters = inspect.signature(function).parameters.values()
    names = ["**" * (p.kind is p.VAR_KEYWORD) + p.name for p in parameters]
    assert re.findall(r"^    (\S+?):", arguments[1], re.MULTILINE) == names
    assert re.search(r"^Returns:\n    ", text, re.MULTILINE)
    assert re.search(r"^Raises:\n    ", text, re.MULTILINE)


def test_the_reference_has_the_public_face(tmp_path):
    pdoc = pytest.importorskip("pdoc")
    pdoc.render.configure(docformat="google")
    pdoc.pdoc("epilogue", "epilogue.nn", output_directory=tmp_path)
    for module, page in ((epilogue, "epilogue.html"), (epilogue.nn, "epilogue/nn.html")):
        text = (tmp_path / page).read_text(encoding="utf-8")
        for name in module.__all__:
            assert f'id="{name}"' in text
    assert "<strong>activation:</strong>" in (tmp_path / "epilogue.html").read_text(encoding="utf-8")
