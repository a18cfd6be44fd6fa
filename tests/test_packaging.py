"""pyproject.toml and CITATION.cff: what is installed, with which requirements, and that it works
from another folder.

`pytest -q tests/test_packaging.py` (about 30 s). Nothing is downloaded.
"""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = {  # extra -> the files that it is read from
    "dev": ["requirements-dev.txt", "requirements-sweep.txt", "requirements-dashboard.txt"],
    "sweep": ["requirements-sweep.txt"],
    "dashboard": ["requirements-dashboard.txt"],
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with an editable install, as `pip install -e .` makes it, without dependencies."""
    target = tmp_path_factory.mktemp("installed")
    options = "--quiet --no-deps --no-build-isolation --no-index --disable-pip-version-check"
    command = [sys.executable, "-m", "pip", "install", *options.split()]
    copy = target / "project"
    copy_project(copy)
    subprocess.run([*command, "--target", target / "site", "--editable", copy], check=True)
    return target


def copy_project(folder: Path) -> None:
    """The committed files, so that the build leaves nothing in the checkout."""
    files = subprocess.run(
        ["git", "ls-files", "*.py", "*.toml", "*.txt", "*.csv", "README.md", "LICENSE"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in files:
        if not name.startswith(("results/", "tests/")):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((ROOT / name).read_bytes())


def pins(name: str) -> set[Requirement]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return {Requirement(line) for line in lines if line}


def test_the_requirements_match_the_files(installed):
    (found,) = importlib.metadata.distributions(path=[str(installed / "site")])
    assert found.metadata["Name"] == "activations-rl"
    python = SpecifierSet(found.metadata["Requires-Python"])
    allowed = {version: version in python for version in ("3.9", "3.10", "3.11.7", "3.12", "3.13")}
    assert allowed == {"3.9": False, "3.10": True, "3.11.7": True, "3.12": True, "3.13": False}
    requirements = {None: set()} | {extra: set() for extra in EXTRAS}
    for line in found.requires:
        requirement = Requirement(line)
        extra = re.search(r'extra == "(\w+)"', str(requirement.marker))
        requirement.marker = None
        requirements[extra[1] if extra else None].add(requirement)
    assert requirements[None] == pins("requirements.txt")
    for extra, files in EXTRAS.items():
        assert requirements[extra] == set.union(*(pins(file) for file in files)), extra


def test_an_installed_project_works_from_another_folder(installed, tmp_path):
    """Editable: the checkout's own modules, and its data."""
    code = """
import site, sys
site.addsitedir(sys.argv[1])
import activations, environments, figures, metrics, optimizers, reports, runlog, sac_continuous
from plots import statistics
print(activations.__file__)
print(statistics.human_normalised(1719.5, "Amidar"))
print(runlog.load is runlog.loading.load)
"""
    command = [sys.executable, "-I", "-c", code, str(installed / "site")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    file, score, is_there = done.stdout.splitlines()
    assert file == str(installed / "project" / "activations.py")
    assert (float(score), is_there) == (1.0, "True")


def test_a_built_package_has_every_module_and_the_data(installed, tmp_path):
    """Not editable: a copy, which does not need the checkout."""
    options = "--quiet --no-deps --no-build-isolation --no-index --disable-pip-version-check"
    command = [sys.executable, "-m", "pip", "install", *options.split(), "--target", tmp_path]
    subprocess.run([*command, installed / "project"], check=True)
    modules = {path.stem for path in ROOT.glob("*.py")}
    assert {path.stem for path in tmp_path.glob("*.py")} == modules  # also of a new script
    for package in ("environments", "plots", "runlog"):
        ours = {path.name for path in (ROOT / package).glob("*.py")}
        assert {path.name for path in (tmp_path / package).glob("*.py")} == ours
    copied = tmp_path / "data" / "atari_scores.csv"
    assert copied.read_bytes() == (ROOT / "data" / "atari_scores.csv").read_bytes()


def test_the_citation_is_true_and_complete():
    """The fields that the Citation File Format 1.2.0 asks for, and what they say."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["cff-version"]) == "1.2.0"
    assert citation["message"] and citation["title"]
    names = [author["name"] for author in citation["authors"]]
    holder = re.search(r"Copyright \(c\) \d+ (.*)", (ROOT / "LICENSE").read_text())[1]
    assert [name.lower() for name in names] == [holder.lower()]
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{citation["version"]}"' in pyproject
    assert f'license = "{citation["license"]}"' in pyproject
    readme = (ROOT / "README.md").read_text()
    for paper in citation["references"]:
        assert {"type", "title", "authors", "year", "url"} <= paper.keys()
        assert paper["url"].removeprefix("https://") in readme
