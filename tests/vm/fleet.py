"""The lab with virtual machines in it: registries, central tier and node are set up by cloud-init.

Switch and resolver stay what they are in `Lab`, hosts of namespaces; qemu runs on the switch, whose bridge
and router the machines' taps belong to. `reset()` takes every machine back to the moment it was set up.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from lab import Host, Lab, Registry, Resolver, until
from lab.internet import PUBLISHED, make_identities, read_published
from lab.lab import DOCKER_IO, NEIGHBOUR, QUAY_IO, RESOLVER
from lab.network import (
    LAN_GATEWAYS,
    UPLINK,
    WAN_GATEWAYS,
    Interface,
    Network,
    on_the_internet,
    on_the_lan,
)
from lab.pki import Identity
from lab.token_service import Signer

from . import cache
from .machine import FOLDER, SNAPSHOT, Machine, mac
from .node import MachineNode
from .remote import KEY, RemoteHost
from .seed import Seed

CLOUD_INIT = cache.CHECKOUT / "vagrant/cloud-init"
ARCHIVE = "tidegate.tar.gz"
WWW = "/srv/www"
INTERNET = "/srv/internet"  # on the machine that plays it
NODE, CENTRAL = 2, 3  # on the LAN
CENTRAL_NAME = "central.example.org"
SET_UP_S = 3000.0
BEFORE = "/var/tmp/before"
READING = Path(__file__).with_name("reading.sh")


class Fleet(Lab):
    """Three machines: `internet` (docker.io and quay.io), `central`, `node`; `add_node` is for namespaces."""

    node: MachineNode

    def __init__(self) -> None:
        super().__init__(nodes=0)
        self.times: dict[str, float] = {}
        self._used = False
        self.machines: dict[str, Machine] = {}

    def _open(self) -> None:
        began = time.monotonic()
        image = cache.image()
        self._took("image", began)
        self.switch = self._stack.enter_context(Host("switch"))
        resolver_host = self._stack.enter_context(Host("resolver"))
        self.hosts = [self.switch, resolver_host]
        self.network = Network(self.switch)
        self.network.plug_into_lan(resolver_host, on_the_lan(RESOLVER))
        plans = (DOCKER_IO, QUAY_IO)
        numbers = {host: number for plan in plans for host, number in plan.addresses.items()}
        wan = {number: on_the_internet(number) for number in {*numbers.values(), NEIGHBOUR}}
        names = {host: [interface.ip for interface in wan[number]] for host, number in numbers.items()}
        names[CENTRAL_NAME] = [interface.ip for interface in on_the_lan(CENTRAL)]
        elsewhere = [interface.ip for interface in wan[NEIGHBOUR]]
        self.resolver = Resolver(resolver_host, self.network, names, elsewhere)
        self._prepare_switch(image)
        self._add_machines([interface for pair in wan.values() for interface in pair])
        kept = cache.ready()
        if kept.exists():
            self._go_on_from(kept)
        else:
            self._set_up()
            self._keep(kept)
            self._start_from_snapshots()
        signer = self._signer_of_the_internet()
        self.registry, self.quay = (
            Registry(self.internet, plan, {host: names[host] for host in plan.addresses}, signer)
            for plan in plans
        )
        self.images = read_published(self.internet.path(f"{INTERNET}/{PUBLISHED}").read_text())
        for registry in self._registries:
            registry.forget()
        self._took("all", began)

    @property
    def _registries(self) -> tuple[Registry, ...]:
        return self.registry, self.quay

    def close(self) -> None:
        """Switch every machine off and end every host. Nothing of it is left."""
        for machine in self.machines.values():
            machine.stop()
        self.nodes = []
        super().close()

    def _prepare_switch(self, image: Path) -> None:
        self.switch.path(FOLDER).mkdir()
        for name in ("root.qcow2", "vmlinuz", "initrd"):
            shutil.copyfile(image / name, self.switch.path(f"{FOLDER}/{name}"))
        self.switch.write(KEY, (image / "key").read_bytes(), mode=0o600)

    def _add_machines(self, wan: list[Interface]) -> None:
        """The machines, plugged in and not running; `self._seeds` are their interfaces."""
        internet = RemoteHost("internet", wan, self.switch)
        central = RemoteHost("central", on_the_lan(CENTRAL), self.switch)
        node = MachineNode("node", on_the_lan(NODE), self.switch)
        self.internet = internet
        self.central = central
        self.nodes = [node]
        self.machines = {
            host.name: Machine(number, host, self.switch)
            for number, host in enumerate((internet, central, node), start=1)
        }
        self.network.plug_machine_into_wan("internet")
        self.network.plug_machine_into_lan("central")
        self.network.plug_machine_into_lan("node")
        # Machines remember their neighbours' addresses over snapshots, and so into other runs.
        for number, (host, interface) in enumerate(
            ((self.switch, "internet"), (self.resolver.host, UPLINK)), start=0xF1
        ):
            host.run(["ip", "link", "set", interface, "address", mac(number)]).or_raise()

    # The first time

    def _set_up(self) -> None:
        """Boot all three and wait for what cloud-init says; nothing else sets them up."""
        began = time.monotonic()
        settings = self._serve_archive()
        self._took("archive", began)
        identities = _identities()
        self._boot("internet", "registry.yaml", settings, vendor_script=_files(INTERNET, identities))
        trust = {"ca_certs": {"trusted": [identities["anchor.pem"]]}}
        self._boot("central", "central.yaml", settings, vendor=trust)
        # A vendor's scripts run just before those of user-data: what the machine is without us.
        before = f"#!/bin/sh\n{{\n{READING.read_text()}\n}} > {BEFORE}\n"
        self._boot("node", "node.yaml", settings, vendor=trust, vendor_script=before)
        for name in self.machines:
            self.machines[name].wait_answering()
            self.machines[name].wait_set_up(SET_UP_S)
            self._took(f"{name} is set up", began)

    def _serve_archive(self) -> dict[str, str]:
        server = self.resolver.host
        path = server.path(f"{WWW}/{ARCHIVE}")
        path.parent.mkdir()
        with tempfile.TemporaryDirectory() as folder:
            packed = Path(folder) / ARCHIVE
            pack = ["nice", "-n", "10", str(cache.CHECKOUT / "script/archive"), str(packed)]
            subprocess.run(pack, check=True, stdin=subprocess.DEVNULL)
            shutil.copyfile(packed, path)
        address = str(self.resolver.address)
        server.spawn([sys.executable, "-m", "http.server", "80", "--bind", address, "--directory", WWW])
        until(lambda: 80 in server.listening(), "the archive is served")
        return {
            "tidegate_archive": f"http://{address}/{ARCHIVE}",
            "tidegate_archive_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "tidegate_central": CENTRAL_NAME,
        }

    def _boot(
        self,
        name: str,
        user_data: str,
        settings: Mapping[str, str],
        *,
        vendor: Mapping[str, object] = {},
        vendor_script: str = "",
    ) -> None:
        machine = self.machines[name]
        machine.create()
        seed = Seed(
            name=name,
            mac=machine.mac,
            interfaces=machine.host.interfaces,
            gateways=WAN_GATEWAYS if name == "internet" else LAN_GATEWAYS,
            resolver=self.resolver.address,
            user_data=(CLOUD_INIT / user_data).read_text(),
            settings=settings,
            vendor=vendor,
            vendor_script=vendor_script,
        )
        seed.write(machine.seed)
        machine.start()

    def _keep(self, kept: Path) -> None:
        began = time.monotonic()
        # All at one moment: none is to remember of another what that one has not done.
        for machine in self.machines.values():
            machine.host.hang_up()  # the kept connection would be a dead one to who goes on from here
        for machine in self.machines.values():
            machine.hold()
        for machine in self.machines.values():
            machine.save()
        cache.keep_only(kept)
        making = kept.with_name(f"making-{os.getpid()}")
        making.mkdir()
        try:
            for machine in self.machines.values():
                machine.keep(making)
            making.rename(kept)
        finally:
            shutil.rmtree(making, ignore_errors=True)
        self._took("snapshots", began)

    # The next time

    def _go_on_from(self, kept: Path) -> None:
        began = time.monotonic()
        for machine in self.machines.values():
            machine.take(kept)
        self._start_from_snapshots()
        self._took("machines from snapshots", began)

    def _start_from_snapshots(self) -> None:
        for machine in self.machines.values():
            machine.stop()
            machine.start(snapshot=SNAPSHOT)
        # At one moment, or the first would find the others silent.
        for machine in self.machines.values():
            machine.resume()
        for machine in self.machines.values():
            machine.wait_answering()
            machine.host.set_clock()  # it slept since the snapshot

    def reset(self) -> None:
        """Every machine as it was when it had been set up; resolver and registries as new."""
        self.resolver.reset()
        for registry in self._registries:
            registry.comes_back()  # its rules are of a time that is about to be forgotten
        if self._used:
            self._start_from_snapshots()
        self._used = True
        for registry in self._registries:
            registry.forget()

    def _signer_of_the_internet(self) -> Signer:
        token = {end: self.internet.path(f"{INTERNET}/token.{end}").read_bytes() for end in ("crt", "key")}
        return Signer(Identity(certificate=token["crt"], key=token["key"]))

    def _took(self, what: str, began: float) -> None:
        self.times[what] = time.monotonic() - began
        print(f"{what}: {self.times[what]:.0f} s", file=sys.stderr, flush=True)  # noqa: T201 (minutes pass)

    def logs(self) -> dict[str, str]:
        found = super().logs()
        for name, machine in self.machines.items():
            found |= {f"{name}/{log}": text for log, text in machine.host.logs().items()}
            found[f"{name}/console"] = machine.console
        return found


def _identities() -> dict[str, str]:
    """The CA and the leaves of the internet; made here, so that machines need not boot one after another."""
    with tempfile.TemporaryDirectory() as folder:
        make_identities(Path(folder))
        return {path.name: path.read_text() for path in Path(folder).iterdir()}


def _files(folder: str, files: Mapping[str, str]) -> str:
    """A script that writes files, as only their owner may read them."""
    writes = [f"cat > {folder}/{name} <<'END'\n{content}END\n" for name, content in files.items()]
    return f"#!/bin/sh\nset -eu\numask 077\nmkdir -p {folder}\n{''.join(writes)}"
