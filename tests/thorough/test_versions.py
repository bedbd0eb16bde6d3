"""The packages that an installation brings today, on every Python that is admitted; the oldest and the newest of them run."""

import os
import re

import pytest

import versions

PYTHONS = versions.admitted()
HERE = [version for version in PYTHONS if versions.interpreter(version)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    if not (os.environ.get("CI") or os.environ.get("UWAV_VERSIONS")):
        pytest.skip("downloads 5 GB and takes minutes; UWAV_VERSIONS=1 asks for it, CI does")
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("version", PYTHONS)
def test_all_extras_can_be_installed_together_on_every_python_that_is_admitted(version, cache):
    assert versions.bounds().keys() <= versions.resolve(version, cache).keys()


@pytest.mark.parametrize("version, which", [(HERE[0], versions.OLDEST), (HERE[-1], versions.NEWEST)], ids=["oldest", "newest"])
def test_decoding_and_every_command_run_with_the_oldest_and_the_newest_packages(version, which, cache, tmp_path):
    installed = versions.tried(version, which, tmp_path / "tried")
    if which == versions.OLDEST and version == PYTHONS[0]:
        below = {name: low for name, (low, _) in versions.bounds().items() if name in installed and number(installed[name]) != number(low)}
        assert not below, "admitted, but another version ran"


def test_bounds_are_the_versions_that_were_tried():
    """docs/versions.md has what ran; pyproject.toml admits that and no later kind of release, run_all.sh the same Pythons."""
    rows = re.findall(r"^\| ([\w-]+) \| ([\d.]*)\S* \| ([\d.]*)\S* \|$", versions.PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    tried, bounds = {name: (old, new) for name, old, new in rows}, versions.bounds()
    wanted = re.findall(r'"([\w-]+)[^"]*"', "".join(re.findall(r"^(?:dependencies|features|onnx-cpu|test) = \[(.*)\]", versions.PROJECT, re.MULTILINE)))
    for name in {x.lower().replace("_", "-") for x in wanted}:
        (low, high), (old, new) = bounds[name], tried[name]
        assert number(low) == number(old), f"{name}: {low} is admitted, {old} was tried"
        assert number(new) < number(high) <= next_release(new, high), f"{name}: below {high} is admitted, {new} was tried"
    assert tried["python"][0].startswith(f"{PYTHONS[0]}.")


def number(version: str) -> tuple[int, ...]:
    """1.20 and 1.20.0 are the same."""
    numbers = [int(x) for x in re.findall(r"\d+", version)]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def next_release(tried: str, bound: str) -> tuple[int, ...]:
    """The first release after the one that was tried, of the kind that the bound names: 2.16 after 2.15.1, 20 after 19.0.2."""
    numbers = [int(x) for x in re.findall(r"\d+", tried)][:len(bound.split("."))]
    return number(".".join(map(str, (*numbers[:-1], numbers[-1] + 1))))
