"""The scripts of `/setup/systemd` and `/setup/undo`, made to be piped into a shell (FEATURES T1). Pure.

They set up what docker-registry-proxy's does, for dockerd and containerd as systemd runs them: the CA in
the system's trust store, HTTPS_PROXY and NO_PROXY in a drop-in of each unit. Everything is named after us,
written only when it differs, and taken away by name. All is in one function that the last line calls: half
a script does nothing.
"""

from tidegate_proxy.central.request_head import Authority

NAME = "tidegate-central"
NOT_PROXIED = (
    "localhost",
    "127.0.0.0/8",
    "::1",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "fc00::/7",
    "fe80::/10",
    ".local",
    ".localdomain",
    ".internal",
    ".svc",
    ".cluster.local",
)
"""What is near is not asked of a proxy. Who runs the script adds to it: NO_PROXY=registry.corp.example"""


def setup_script(proxy: Authority, *, ca_pem: str) -> str:
    """The script for this proxy; `proxy` is how the node reaches it, and its grammar needs no quoting."""
    no_proxy = ",".join((*NOT_PROXIED, proxy.host))
    return _SETUP.format(common=_COMMON, proxy=proxy, no_proxy=no_proxy, ca=ca_pem.strip())


def undo_script() -> str:
    """The script that takes away what any `setup_script` did."""
    return _UNDO.format(common=_COMMON)


_COMMON = r"""
say() { printf 'tidegate: %s\n' "$*"; }
todo() { printf 'tidegate: TO DO: %s\n' "$*" >&2; }
fail() { printf 'tidegate: %s\n' "$*" >&2; exit 1; }

# Where this family keeps anchors, and what makes them effective.
family() {
    if command -v update-ca-trust >/dev/null 2>&1 && [ -d /etc/pki/ca-trust/source/anchors ]; then
        anchor=/etc/pki/ca-trust/source/anchors/tidegate-central.crt
        link=''
        refresh='update-ca-trust extract'
    elif command -v update-ca-certificates >/dev/null 2>&1; then
        anchor=/usr/local/share/ca-certificates/tidegate-central.crt
        link=/etc/ssl/certs/tidegate-central.pem
        refresh=update-ca-certificates
    else
        anchor='' link='' refresh=''
    fi
}

# systemd is there, and is what runs this machine.
systemd_runs() { [ -d /run/systemd/system ] && command -v systemctl >/dev/null 2>&1; }

# Make units read their drop-ins again: those that run now.
restart() {
    systemd_runs || return 1
    systemctl daemon-reload || return 1
    for unit in docker.service containerd.service; do
        if systemctl --quiet is-active "$unit"; then
            say "restarting $unit"
            systemctl restart "$unit" || todo "systemctl restart $unit  (it failed)"
        fi
    done
}
""".strip()

_SETUP = r"""#!/bin/sh
# Makes dockerd and containerd of this machine pull through {proxy}. Safe to run again.
# Undo: curl -fsS http://{proxy}/setup/undo | sudo bash
{common}

main() {{
    set -eu
    [ "$(id -u)" = 0 ] || fail 'root is needed: curl -fsS http://{proxy}/setup/systemd | sudo bash'
    umask 022
    proxy='http://{proxy}'
    # What is in NO_PROXY already, or given to this script, stays.
    no_proxy='{no_proxy}'"${{NO_PROXY:+,$NO_PROXY}}"
    case $no_proxy in *[!A-Za-z0-9.,:/*_-]*) fail 'NO_PROXY is no list of hosts and networks' ;; esac
    changed=''

    family
    [ -n "$anchor" ] || fail 'no trust store was found: install ca-certificates, and run this again'
    new=$(mktemp)
    trap 'rm -f "$new"' EXIT
    cat >"$new" <<'TIDEGATE_CA'
{ca}
TIDEGATE_CA
    if ! cmp -s "$new" "$anchor"; then
        [ -z "$link" ] || rm -f "$link" # without it a certificate that changed counts as a new one
        cat "$new" >"$anchor"
        $refresh >/dev/null || fail "$refresh failed: the certificate is in $anchor, but nobody trusts it yet"
        say "the CA of $proxy is in the trust store: $anchor"
        changed=yes
    fi

    for unit in docker containerd; do
        folder=/etc/systemd/system/$unit.service.d
        cat >"$new" <<TIDEGATE_DROP_IN
# Of http://{proxy}/setup/systemd; taken away by /setup/undo there.
[Service]
Environment="HTTPS_PROXY=$proxy"
Environment="https_proxy=$proxy"
Environment="NO_PROXY=$no_proxy"
Environment="no_proxy=$no_proxy"
TIDEGATE_DROP_IN
        if ! cmp -s "$new" "$folder/tidegate-central.conf"; then
            mkdir -p "$folder"
            cat "$new" >"$folder/tidegate-central.conf"
            say "$unit is told of $proxy: $folder/tidegate-central.conf"
            changed=yes
        fi
    done

    if [ -z "$changed" ]; then
        say 'nothing had to be changed'
    elif ! restart; then
        todo 'systemd does not run here: restart dockerd and containerd yourself, with this environment:'
        todo "HTTPS_PROXY=$proxy NO_PROXY=$no_proxy"
    fi
    say "done: dockerd and containerd pull through $proxy; undo: curl -fsS $proxy/setup/undo | sudo bash"
}}

main "$@"
"""

_UNDO = r"""#!/bin/sh
# Takes away what /setup/systemd of a Tidegate central tier did to this machine. Safe to run again.
{common}

main() {{
    set -eu
    [ "$(id -u)" = 0 ] || fail 'root is needed: pipe this to: sudo bash'
    changed=''

    for unit in docker containerd; do
        folder=/etc/systemd/system/$unit.service.d
        if [ -e "$folder/tidegate-central.conf" ]; then
            rm "$folder/tidegate-central.conf"
            rmdir "$folder" 2>/dev/null || :
            changed=yes
        fi
    done

    family
    if [ -e "$anchor" ] || [ -L "$link" ]; then
        rm -f "$anchor"
        if [ -n "$link" ]; then
            # Deselected: a file that is merely gone leaves links, and other stores (Java's) keep a copy.
            list=$(mktemp)
            trap 'rm -f "$list"' EXIT
            cat /etc/ca-certificates.conf >"$list" 2>/dev/null || :
            echo '!tidegate-central.crt' >>"$list"
            update-ca-certificates --certsconf "$list" >/dev/null || fail 'update-ca-certificates failed'
        else
            $refresh >/dev/null || fail "$refresh failed"
        fi
        changed=yes
    fi

    if [ -z "$changed" ]; then
        say 'there was nothing to take away'
    elif ! restart; then
        todo 'systemd does not run this machine now: restart dockerd and containerd without HTTPS_PROXY'
    fi
    say 'done: dockerd and containerd pull by themselves again'
}}

main "$@"
"""
