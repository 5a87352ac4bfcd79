"""What `tidegate trust install|remove|status` do: check, act, check again, and say what to type next.

The certificate goes into the store; the key never leaves the authority's directory. Whatever is done twice is
done once: the second run says that there was nothing to do.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tidegate_agent.config import AgentConfig
from tidegate_agent.trust.ownership import as_owner_of
from tidegate_agent.trust.plan import install_plan, remove_plan
from tidegate_agent.trust.store import Anchor, Store, below, content, trusted
from tidegate_core.errors import TidegateError

RESTART_ADVICE = (
    "dockerd, containerd and other daemons read the store once, at their start:"
    " restart those that run already"
)


def install(config: AgentConfig, *, root: Path, now: datetime, dry_run: bool) -> Iterator[str]:
    """Makes or renews the authority, puts its certificate into the store, and tells line by line."""
    anchor = Anchor.of(config.state_dir, root=root)
    store = Store.of(root, certificate=anchor.certificate)
    if dry_run:
        directory = anchor.certificate.parent
        yield f"would make the authority in {directory} where it is missing, or renew it for other hosts"
        yield str(install_plan(store, anchor, content(anchor.certificate) or b""))
        return
    # Not read from its file again: what root installs is what was judged, and no other file.
    certificate = _authority_certificate(config, anchor, root=root, now=now)
    plan = install_plan(store, anchor, certificate)
    plan.apply()
    if not trusted(store.bundle, certificate):
        cause = f"{store.family.update} ran, but {store.bundle} still lacks {anchor.certificate}"
        raise TidegateError(cause, next_step=f"look at what is in {store.anchor_file(anchor).parent}")
    if not plan.steps:
        yield f"{store.bundle} already holds {anchor.certificate}: nothing to do"
        return
    yield f"installed {anchor.certificate} as {store.anchor_file(anchor)}; {store.bundle} holds it now"
    yield RESTART_ADVICE


def remove(config: AgentConfig, *, root: Path, dry_run: bool) -> Iterator[str]:
    """Takes the certificate out of the store; works without the authority, and leaves the authority alone."""
    anchor = Anchor.of(config.state_dir, root=root)
    store = Store.of(root, certificate=anchor.certificate)
    plan = remove_plan(store, anchor)
    if dry_run:
        yield str(plan)
        return
    plan.apply()
    if store.holds(anchor) or remove_plan(store, anchor).steps:
        raise TidegateError(f"{store.bundle} still trusts {anchor.name} after {store.family.update}")
    if plan.steps:
        yield f"removed {store.anchor_file(anchor)}; {store.bundle} is without it now"
    else:
        yield f"{store.bundle} does not hold it: nothing to do"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustState:
    """What the store knows of this node's authority, and what to type about it ("" where all is well)."""

    store: Path
    trusted: bool
    certificate: Path
    fingerprint: str
    names: tuple[str, ...]
    action: str


def status(config: AgentConfig, *, root: Path) -> TrustState:
    """The state of the store; changes nothing."""
    anchor = Anchor.of(config.state_dir, root=root)
    store = Store.of(root, certificate=anchor.certificate)
    pem, present = content(anchor.certificate), content(store.anchor_file(anchor))
    is_trusted = pem is not None and trusted(store.bundle, pem)
    fingerprint, names = _described(pem or present)
    action = "" if is_trusted else "tidegate trust install"
    if not is_trusted and pem is None and present is not None:
        action = "tidegate trust remove"  # the authority is gone, only its anchor is left
    return TrustState(
        store=store.bundle,
        trusted=is_trusted,
        certificate=anchor.certificate,
        fingerprint=fingerprint,
        names=names,
        action=action,
    )


def _authority_certificate(config: AgentConfig, anchor: Anchor, *, root: Path, now: datetime) -> bytes:
    """Of the authority that is there, or made now: by whom the state directory belongs to."""
    from tidegate_proxy.interception.authority import Authority

    machine_id = (content(below(root, "/etc/machine-id")) or b"").decode(errors="replace").strip()
    with as_owner_of(below(root, config.state_dir)):
        authority = Authority.load_or_create(
            anchor.certificate.parent, hosts=config.host_patterns, machine_id=machine_id, now=now
        )
    return authority.certificate_pem


def _described(pem: bytes | None) -> tuple[str, tuple[str, ...]]:
    """SHA-256 fingerprint and permitted DNS names (RFC 5280, 4.2.1.10) of a certificate."""
    if pem is None:
        return "", ()
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256

    try:
        certificate = x509.load_pem_x509_certificate(pem)
        constraints = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
    except ValueError as error:
        raise TidegateError(f"the authority's certificate is damaged: {error}") from error
    except x509.ExtensionNotFound as error:
        raise TidegateError("the authority's certificate has no name constraints: it is not ours") from error
    names = [name.value for name in constraints.permitted_subtrees or () if isinstance(name, x509.DNSName)]
    return certificate.fingerprint(SHA256()).hex(":").upper(), tuple(names)
