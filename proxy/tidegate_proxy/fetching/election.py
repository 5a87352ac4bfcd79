"""Who fetches a blob, where several processes share a store: one of them, and the others do without it.

Readers of one process share a fetch anyhow; this decides between processes. There is one so far, an agent
or a central tier, so its election has one candidate. Workers need one that they share: a lock file per
digest, say, which frees itself when its holder dies. Who is not elected serves its readers from requests of
their own.
"""

from typing import Protocol

from tidegate_proxy.oci.digest import Digest


class Election(Protocol):
    """Elects the fetcher of each blob; neither call may block."""

    def stand(self, digest: Digest) -> bool:
        """Whether this process fetches the blob; if so, until it steps down or dies."""
        ...

    def step_down(self, digest: Digest) -> None:
        """The fetch has ended."""
        ...


class OneProcess:
    """The election where nobody else uses the store."""

    def stand(self, digest: Digest) -> bool:  # noqa: ARG002 - whichever blob it is
        return True

    def step_down(self, digest: Digest) -> None:
        """There is nobody to make way for."""
