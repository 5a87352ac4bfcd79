# What script/run and script/test need of the machine: packages and a virtual environment. To be sourced.
# Nothing here starts or enables a service, and nothing is done that is done already.

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$checkout/.venv

export LC_ALL=C.UTF-8

# Some callers have no standard input at all, and some tools misbehave then.
exec </dev/null

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
    say "$1"
    [ $# -lt 2 ] || printf '  %s\n' "$2" >&2
    exit 1
}

# need_packages PACKAGE...: installs those that are missing, with apt.
need_packages() {
    local missing=() package
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || die "these packages are missing: ${missing[*]}" "run this as root, or install them"
    say "installing ${missing[*]}"
    apt_install "${missing[@]}" || {
        [ $? != 130 ] || exit 130
        say "apt failed, trying once more"
        sleep 3
        apt_install "${missing[@]}"
    } || die "apt could not install ${missing[*]}" "see its messages above"
}

# need_unpacked PACKAGE...: unpacks those that are not installed into $venv/unpacked, for nodes of the lab.
# systemd-resolved may not be installed here: that replaces /etc/resolv.conf. Without them its tests are skipped.
need_unpacked() {
    local package version stamp=$venv/unpacked/.of folder
    version=$(dpkg-query -W -f '${Version}' systemd 2>/dev/null) || return 0
    [ "$(cat "$stamp" 2>/dev/null)" != "$version $*" ] || return 0
    rm -rf "$venv/unpacked"
    mkdir -p "$venv/unpacked"
    folder=$(mktemp -d)
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" != installed ] || continue
        if ! (cd "$folder" && { apt-get -qq download "$package=$version" ||
            { apt-get -qq update && apt-get -qq download "$package=$version"; }; }) 2>/dev/null; then
            say "apt has no $package $version: its tests will be skipped"
            rm -rf "$folder"
            return 0
        fi
        dpkg-deb -x "$folder/$package"_*.deb "$venv/unpacked"
    done
    rm -rf "$folder"
    printf '%s\n' "$version $*" >"$stamp"
}

# A subshell, so that the traps end with it.
apt_install() (
    export DEBIAN_FRONTEND=noninteractive
    links_before=$(enabled_links)
    forbid_starts
    trap allow_starts EXIT
    trap 'exit 130' INT TERM HUP
    apt-get -o DPkg::Lock::Timeout=120 -qq update &&
        apt-get -o DPkg::Lock::Timeout=120 -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 install "$@" >&2
    status=$?
    disable_new "$links_before"
    exit $status
)

# invoke-rc.d and deb-systemd-invoke ask /usr/sbin/policy-rc.d before they start anything. One that is there and
# says no to everything stays; any other is put aside and comes back.
policy=/usr/sbin/policy-rc.d
policy_aside=/usr/sbin/policy-rc.d.before-tidegate

forbid_starts() {
    if grep -q 'tidegate' "$policy" 2>/dev/null; then
        return # left by a run that was killed; allow_starts takes it away
    fi
    if [ -e "$policy" ]; then
        "$policy" tidegate start >/dev/null 2>&1
        [ $? != 101 ] || return 0
        mv "$policy" "$policy_aside"
    fi
    printf '#!/bin/sh\n# tidegate: no service starts while its packages are installed\nexit 101\n' >"$policy"
    chmod 755 "$policy"
}

allow_starts() {
    if grep -q 'tidegate' "$policy" 2>/dev/null; then
        rm -f "$policy"
    fi
    if [ -e "$policy_aside" ]; then
        mv "$policy_aside" "$policy"
    fi
}

# Packages enable their units by links; those that were not there before go again.
enabled_links() {
    find /etc/systemd/system /etc/systemd/user /etc/rc[0-9S].d -type l 2>/dev/null | sort
}

disable_new() {
    local link name
    comm -13 <(printf '%s\n' "$1") <(enabled_links) | while read -r link; do
        case $link in
        /etc/rc[2-5].d/S*)
            name=${link##*/S[0-9][0-9]}
            update-rc.d "$name" disable >/dev/null 2>&1 || true
            ;;
        /etc/systemd/*) rm -f "$link" ;;
        esac
    done
}

# need_python [EXTRA]: the virtual environment, with the project in it, again only when that changed.
need_python() {
    local extra=${1:-} stamp wanted
    command -v python3 >/dev/null || need_packages python3
    if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
            die "$(command -v python3) is older than Python 3.11" "Debian 12 and Ubuntu 24.04 have one"
        python3 -c 'import ensurepip, venv' 2>/dev/null || need_packages python3-venv
        say "making $venv"
        python3 -m venv --clear "$venv" || die "$venv could not be made"
    fi
    # What pip reads stands above the linters' part.
    wanted=$(sed '/^\[tool\.ruff\]/,$d' "$checkout/pyproject.toml" | sha256sum)
    for stamp in "$venv/.installed-$extra" "$venv/.installed-test"; do
        [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || return 0
    done
    say "installing the project into $venv"
    # The cache stays inside the checkout; which index, proxy and certificates to use is the machine's own
    # configuration (pip.conf, PIP_*).
    PIP_CACHE_DIR=${PIP_CACHE_DIR:-$venv/cache} PIP_DISABLE_PIP_VERSION_CHECK=1 \
        "$venv/bin/python" -m pip install --quiet --retries 3 --editable "$checkout${extra:+[$extra]}" >&2 ||
        die "pip could not install the project" "see its messages above; pip uses the machine's own pip.conf and PIP_*"
    printf '%s\n' "$wanted" >"$venv/.installed-$extra"
}
