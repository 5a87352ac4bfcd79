"""Wheels of this checkout and of what it needs, made from what is installed here: no network, no index.

A wheel is a zip file of what an installation unpacks (PEP 427), so an installation is one again.
"""

from __future__ import annotations

import re
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
SOURCES = ("agent", "core", "dns", "proxy")
NAME = re.compile(r"[A-Za-z0-9._-]+")


def make_wheels(folder: Path, checkout: Path = CHECKOUT) -> None:
    """Into `folder`: the checkout's wheel, and those of its dependencies in the versions installed here."""
    folder.mkdir(parents=True, exist_ok=True)
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    _pack_checkout(project, folder, checkout)
    for each in _needed(project["dependencies"]):
        _pack(each, folder)


def _pack_checkout(project: dict[str, Any], folder: Path, checkout: Path) -> None:  # Any: as TOML has it
    stated = (checkout / "agent/tidegate_agent/__init__.py").read_text()
    (version,) = re.findall(r'__version__ = "(.*)"', stated)
    name = project["name"]
    scripts = "".join(f"{script} = {target}\n" for script, target in project["scripts"].items())
    needs = "".join(f"Requires-Dist: {each}\n" for each in project["dependencies"])
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/entry_points.txt", f"[console_scripts]\n{scripts}")
        wheel.writestr(f"{info}/RECORD", "")
        for source in SOURCES:
            for path in sorted((checkout / source).glob("tidegate_*/**/*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    wheel.write(path, path.relative_to(checkout / source))


def _needed(requirements: Sequence[str]) -> list[Distribution]:
    """The distributions that satisfy these here, and what they need in turn, each once."""
    found: dict[str, Distribution] = {}
    wanted = [match[0] for requirement in requirements if (match := NAME.match(requirement))]
    while wanted:
        name = wanted.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found:
            continue
        try:
            found[key] = distribution(name)
        except ModuleNotFoundError:
            continue  # needed on another platform or by another Python
        for requirement in found[key].requires or ():
            if "extra ==" not in requirement and (match := NAME.match(requirement)):
                wanted.append(match[0])
    return list(found.values())


def _pack(installed: Distribution, folder: Path) -> None:
    text = str(installed.read_text("WHEEL"))
    tags = [line.partition(": ")[2] for line in text.splitlines() if line.startswith("Tag: ")]
    python, abi, _ = tags[0].split("-")
    platforms = ".".join(dict.fromkeys(tag.split("-")[2] for tag in tags))
    name = re.sub(r"[-_.]+", "_", installed.metadata["Name"])
    with zipfile.ZipFile(folder / f"{name}-{installed.version}-{python}-{abi}-{platforms}.whl", "w") as wheel:
        for path in _files(installed):
            wheel.write(str(installed.locate_file(path)), path)


def _files(installed: Distribution) -> Iterator[str]:
    for file in installed.files or ():
        if ".." not in file.parts and "__pycache__" not in file.parts:
            yield str(file)
