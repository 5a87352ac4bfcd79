"""Platforms, and the manifests of an index by theirs."""

import json

import pytest

from tidegate_proxy.oci.descriptor import MANIFEST_TYPES
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.oci.platform import InvalidPlatform, Platform, platforms_of

INDEX = "application/vnd.oci.image.index.v1+json"


def child(number: int, **platform: str) -> dict[str, object]:
    digest = f"sha256:{number:064x}"
    return {"mediaType": MANIFEST_TYPES[0], "digest": digest, "size": 1, "platform": platform}


def test_the_platforms_of_an_index_are_told_in_order() -> None:
    children = [
        child(1, os="linux", architecture="amd64"),
        child(2, os="linux", architecture="arm", variant="v7"),
    ]
    index = json.dumps({"schemaVersion": 2, "manifests": children}).encode()

    found = platforms_of(index, INDEX)

    assert [str(platform) for platform in found.values()] == ["linux/amd64", "linux/arm/v7"]
    assert list(found) == [Digest("sha256", f"{number:064x}") for number in (1, 2)]


@pytest.mark.parametrize(
    ("there", "wanted", "serves"),
    [
        ("linux/amd64", "linux/amd64", True),
        ("linux/arm64/v8", "linux/arm64", True),
        ("linux/arm64", "linux/arm64/v8", True),
        ("linux/arm/v6", "linux/arm/v7", False),
        ("linux/arm", "linux/arm/v7", True),
        ("windows/amd64", "linux/amd64", False),
        ("linux/amd64/v3", "linux/amd64", False),
    ],
)
def test_a_variant_that_is_not_told_is_the_usual_one(there: str, wanted: str, serves: bool) -> None:
    assert Platform.parse(there).serves(Platform.parse(wanted)) is serves


@pytest.mark.parametrize("text", ["", "amd64", "linux/", "linux/amd64/v1/x", "linux/am d"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(InvalidPlatform):
        Platform.parse(text)


def test_this_machine_has_a_platform() -> None:
    assert str(Platform.of_machine("x86_64")) == "linux/amd64"
    assert str(Platform.of_machine("armv7l")) == "linux/arm/v7"
    assert str(Platform.of_machine("riscv64")) == "linux/riscv64"
