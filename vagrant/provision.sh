#!/bin/sh
# Does for a Vagrant machine what a cloud does: gives it its names, a resolver and a CA to trust, and user-data to
# cloud-init, which it then runs to its end.   provision.sh USER_DATA META_DATA_IN_BASE64
set -eu

user_data=/vagrant/cloud-init/$1
meta_data=$(printf %s "$2" | base64 -d)
registry=192.168.77.10
central=192.168.77.11
export DEBIAN_FRONTEND=noninteractive

need() {
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="${missing-} $package"
    done
    [ -z "${missing-}" ] || { apt-get -qq update && apt-get -qq -y --no-install-recommends install $missing; }
    missing=
}

give_seed() {
    mkdir -p /var/lib/cloud/seed/nocloud
    cp "$user_data" /var/lib/cloud/seed/nocloud/user-data
    printf '%s\n' "$meta_data" >/var/lib/cloud/seed/nocloud/meta-data
    # Network, keys and users are Vagrant's.
    cat >/etc/cloud/cloud.cfg.d/99_vagrant.cfg <<CLOUD
datasource_list: [NoCloud]
network: {config: disabled}
ssh_deletekeys: false
locale: C.UTF-8
users: []
disable_root: false
CLOUD
}

run_cloud_init() {
    cloud-init clean
    cloud-init init --local
    cloud-init init
    cloud-init modules --mode=config
    cloud-init modules --mode=final
    cloud-init status --long
}

# What plays docker.io also resolves its name, for machines that ask here.
serve_names() {
    need dnsmasq-base
    mkdir -p /srv/anchor
    cat >/etc/lab-names.conf <<NAMES
bind-interfaces
listen-address=$registry
no-hosts
host-record=central.example.org,$central
$(for name in registry-1.docker.io index.docker.io auth.docker.io production.cloudflare.docker.com quay.io cdn01.quay.io; do
        echo "host-record=$name,$registry"
    done)
NAMES
    systemctl is-active -q lab-names || systemd-run -q --unit lab-names dnsmasq --keep-in-foreground --conf-file=/etc/lab-names.conf
    systemctl is-active -q lab-anchor || systemd-run -q --unit lab-anchor python3 -m http.server 8000 --directory /srv/anchor
}

ask_there_and_trust() {
    if systemctl is-active -q systemd-resolved; then
        mkdir -p /etc/systemd/resolved.conf.d
        printf '[Resolve]\nDNS=%s\nDomains=~.\n' "$registry" >/etc/systemd/resolved.conf.d/lab.conf
        systemctl restart systemd-resolved
    else
        printf 'supersede domain-name-servers %s;\n' "$registry" >>/etc/dhcp/dhclient.conf
        printf 'nameserver %s\n' "$registry" >/etc/resolv.conf
    fi
    # It is there when cloud-init is done on that machine: minutes, where it is emulated.
    curl -fs --retry 600 --retry-delay 2 --retry-all-errors -o /usr/local/share/ca-certificates/lab.crt \
        "http://$registry:8000/anchor.pem" || { echo "no CA came from http://$registry:8000/anchor.pem" >&2 && exit 1; }
    update-ca-certificates >/dev/null
}

need cloud-init curl ca-certificates python3-venv
case $1 in
registry.yaml)
    need docker-registry busybox-static skopeo
    systemctl disable -q --now docker-registry
    serve_names
    ;;
*)
    need skopeo
    ask_there_and_trust
    ;;
esac
give_seed
run_cloud_init
[ "$1" != registry.yaml ] || install -m 644 /srv/internet/anchor.pem /srv/anchor/anchor.pem
