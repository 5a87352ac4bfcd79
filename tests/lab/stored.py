"""What lies in the store of an agent or a central tier: by its files, without its word."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from .host import Host

STATE = "/var/lib/tidegate"


def stored_sizes(host: Host, state: str = STATE) -> dict[str, int]:
    """Digest -> size of every blob; what is evicted meanwhile may be there or not."""
    sizes = {}
    for path in _files(host, state):
        with suppress(FileNotFoundError):
            sizes[f"{path.parents[1].name}:{path.name}"] = path.stat().st_size
    return sizes


def wrong_in_the_store(host: Host, state: str = STATE) -> list[str]:
    """Files below `blobs` whose name is not the digest of their content, or no digest in its place."""
    wrong = []
    for path in _files(host, state):
        algorithm, prefix = path.parents[1].name, path.parent.name
        is_named = algorithm in ("sha256", "sha512") and path.name.startswith(prefix) and len(prefix) == 2
        if not is_named or hashlib.new(algorithm, path.read_bytes()).hexdigest() != path.name:
            wrong.append(str(path))
    return wrong


def _files(host: Host, state: str) -> list[Path]:
    return [path for path in host.path(f"{state}/blobs").rglob("*") if not path.is_dir()]
