"""The reference that `make docs` makes from the docstrings."""

import inspect
import re

import pytest

import epilogue
import epilogue.nn

PUBLIC = [getattr(module, name) for module in (epilogue, epilogue.nn) for name in module.__all__]
DOCUMENTED = [thing for thing in PUBLIC if "\nArgs:\n" in (inspect.getdoc(thing) or "")]


@pytest.mark.parametrize("thing", DOCUMENTED, ids=lambda thing: thing.__name__)
def test_a_docstring_names_each_argument(thing):
    section = re.search(r"^Args:\n((?:    .*\n)+)", inspect.getdoc(thing), re.MULTILINE)[1]
    parameters = inspect.signature(thing).parameters.values()
    names = ["**" * (p.kind is p.VAR_KEYWORD) + p.name for p in parameters]
    named = re.findall(r"^    ([\w*, ]+):", section, re.MULTILINE)
    named = [name for line in named for name in line.split(", ")]
    assert named == names[: len(named) if "All other arguments are those of" in section else None]


@pytest.mark.parametrize("name", ["backend", "explain", "resolve", "fuse", "unfuse"])
def test_what_is_returned_and_raised_has_a_section(name):
    text = inspect.getdoc(getattr(epilogue, name, None) or getattr(epilogue.nn, name))
    for section in ("Args", "Returns", "Raises"):
        assert f"\n{section}:\n    " in text


@pytest.mark.filterwarnings("ignore:Error parsing type annotation")  # as in the Makefile
def test_the_reference_has_the_public_face(tmp_path):
    pdoc = pytest.importorskip("pdoc")
    pdoc.render.configure(docformat="google")
    pdoc.pdoc("epilogue", "epilogue.nn", output_directory=tmp_path)
    for module, page in ((epilogue, "epilogue.html"), (epilogue.nn, "epilogue/nn.html")):
        text = (tmp_path / page).read_text(encoding="utf-8")
        for name in module.__all__:
            assert f'id="{name}"' in text
    text = (tmp_path / "epilogue.html").read_text(encoding="utf-8")
    assert "<strong>activation:</strong>" in text  # Args are read
    assert 'href="epilogue/nn.html"' in text
