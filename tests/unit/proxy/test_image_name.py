"""Images as people write them."""

import pytest

from tidegate_proxy.oci.image_name import ImageName, InvalidImageName

HEX = "a" * 64


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("nginx", "docker.io/library/nginx"),
        ("nginx:1.27", "docker.io/library/nginx:1.27"),
        ("library/nginx:1.27", "docker.io/library/nginx:1.27"),
        ("team/tool", "docker.io/team/tool"),
        ("docker.io/nginx", "docker.io/library/nginx"),
        ("index.docker.io/library/nginx", "docker.io/library/nginx"),
        ("registry-1.docker.io/library/nginx:1", "docker.io/library/nginx:1"),
        (f"docker.io/library/nginx@sha256:{HEX}", f"docker.io/library/nginx@sha256:{HEX}"),
        (f"nginx:1.27@sha256:{HEX}", f"docker.io/library/nginx@sha256:{HEX}"),
        ("registry.local:5000/x:1", "registry.local:5000/x:1"),
        ("localhost/x", "localhost/x"),
        ("Quay.IO/team/tool", "quay.io/team/tool"),
        (" quay.io/team/tool ", "quay.io/team/tool"),
    ],
)
def test_an_image_is_read_as_docker_reads_it(text: str, meant: str) -> None:
    """C20: what people type is completed as their clients complete it, and what is printed reads back."""
    name = ImageName.parse(text)

    assert str(name) == meant
    assert ImageName.parse(str(name)) == name


@pytest.mark.parametrize(
    "text", ["", "Nginx", "nginx:", "nginx@sha256:12", "nginx@", "quay.io/", "a b", "../x", "x:" + "t" * 129]
)
def test_what_names_no_image_is_refused_with_what_to_type(text: str) -> None:
    with pytest.raises(InvalidImageName) as refusal:
        ImageName.parse(text)

    assert refusal.value.next_step


def test_latest_is_meant_where_nothing_is_said() -> None:
    assert str(ImageName.parse("nginx").or_latest) == "docker.io/library/nginx:latest"
    assert str(ImageName.parse("nginx:1").or_latest) == "docker.io/library/nginx:1"
