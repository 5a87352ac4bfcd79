"""Which of the system's users the rules treat apart (passwd(5))."""

import pwd


def tcp_dns_direct_uids() -> tuple[int, ...]:
    """systemd-resolved's uid, where it exists: it binds TCP to an interface, where no redirect works."""
    try:
        return (pwd.getpwnam("systemd-resolve").pw_uid,)
    except KeyError:
        return ()
