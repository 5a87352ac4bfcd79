"""From the name that a person writes to the site, and back: what the index calls an image and people do not.

Tags are kept by a registry's name in the configuration, and what a repository holds by that which a mirror
would be told: of a registry with several hosts, only the latter is what one can pull.
"""

from collections.abc import Iterable

from tidegate_core.errors import TidegateError
from tidegate_proxy.oci.image_name import ImageName
from tidegate_proxy.site import Registries, Site
from tidegate_proxy.storage.tag_rows import TagRow, TagRows


class NoSuchRegistry(TidegateError):
    """Nothing of it is steered or cached."""


def site_of(registries: Registries, name: ImageName) -> Site:
    """Where the image is asked for; raises NoSuchRegistry."""
    site = registries.by_namespace(name.registry)
    if site is None:
        raise NoSuchRegistry(
            f"{name.registry} is no registry of this configuration, so nothing of it is cached",
            next_step=f'add [[registry]] with hosts = ["{name.registry}"], then: tidegate reload',
        )
    return site


def spoken(registries: Registries, rows: TagRows, row: TagRow) -> str:
    """The registry of a row as one would pull from it. Blocks: asks the index."""
    return _spoken(registries, row, rows.places(row.digest))


def _spoken(registries: Registries, row: TagRow, places: Iterable[tuple[str, str]]) -> str:
    for namespace, repository in places:
        if repository != row.repository:
            continue
        site = registries.by_namespace(namespace)
        if site is not None and site.registry == row.registry:
            return namespace
    return row.registry
