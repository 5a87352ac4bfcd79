"""A virtual machine: one qemu process on a lab host, with a tap interface in that host's network.

qemu runs in the host's pid namespace, so it ends with the host whatever happens to the tests. Disks and
snapshots lie in the host's memory. Without KVM (`TIDEGATE_VM_ACCEL`, default tcg) a machine is 10 to 20 times
slower than this one: for what is right, never for how fast.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path

from lab import Host, Process, until

from .remote import RemoteHost

FOLDER = "/srv/vm"
BASE = f"{FOLDER}/root.qcow2"
SNAPSHOT = "ready"
MEMORY_MB = 768
ACCELERATOR = {
    "tcg": "tcg,tb-size=256",  # MB of translated code; by default it grows to 1024
    "kvm": "kvm",
}[os.environ.get("TIDEGATE_VM_ACCEL", "tcg")]
BOOT_S = 600.0  # 40 on an idle machine without KVM


class Machine:
    """`number` makes its MAC address; its tap interface has its name. `seed` is read at the first boot."""

    def __init__(self, number: int, host: RemoteHost, hypervisor: Host):
        self.name = host.name
        self.mac = mac(number)
        self.host = host
        self._hypervisor = hypervisor
        self._qemu: Process | None = None

    @property
    def disk(self) -> Path:
        return self._hypervisor.path(f"{FOLDER}/{self.name}.qcow2")

    @property
    def seed(self) -> Path:
        return self._hypervisor.path(f"{FOLDER}/{self.name}.iso")

    @property
    def console(self) -> str:
        path = self._hypervisor.path(f"{FOLDER}/{self.name}.console")
        return path.read_text(errors="replace") if path.exists() else ""

    def create(self) -> None:
        """An empty disk over the common one."""
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", BASE, "-F", "qcow2"]
        self._hypervisor.run([*command, f"{FOLDER}/{self.name}.qcow2"]).or_raise()

    def start(self, *, snapshot: str = "") -> None:
        """Boot, or take the snapshot's disk and memory and hold still, until `resume()`; returns at once.

        A snapshot takes a qemu of its own each time: one that ran already has counted more of the processor's
        ticks than the snapshot has, and the machine would see the difference as time that passed at once.
        """
        files = f"{FOLDER}/{self.name}"
        argv = [
            *("nice", "-n", "5", "qemu-system-x86_64", "-accel", ACCELERATOR, "-cpu", "max", "-smp", "1"),
            *("-m", str(MEMORY_MB)),
            *("-display", "none", "-serial", f"file:{files}.console", "-no-user-config", "-nodefaults"),
            *("-kernel", f"{FOLDER}/vmlinuz", "-initrd", f"{FOLDER}/initrd"),
            *("-append", "root=/dev/vda rw console=ttyS0 tsc=reliable"),
            *("-drive", f"file={files}.qcow2,if=virtio,cache=unsafe"),
            *("-drive", f"file={files}.iso,if=virtio,format=raw,readonly=on"),
            *("-netdev", f"tap,id=uplink,ifname={self.name},script=no,downscript=no"),
            *("-device", f"virtio-net-pci,netdev=uplink,mac={self.mac}"),
            *("-device", "virtio-rng-pci"),
            *("-qmp", f"unix:{files}.qmp,server=on,wait=off"),
            *(("-S", "-loadvm", snapshot) if snapshot else ()),
        ]
        self._qemu = self._hypervisor.spawn(argv, log=f"qemu-{self.name}")

    def wait_answering(self, within_s: float = BOOT_S) -> None:
        """Wait until ssh works there."""

        def answers() -> bool:
            self._check_running()
            return self.host.answers

        try:
            until(answers, f"{self.name} answers", within_s=within_s, every_s=0.5)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; its console ends with\n{self.console[-3000:]}") from None

    def wait_set_up(self, within_s: float) -> None:
        """Wait for cloud-init's end; what failed is an error here, be it a warning to cloud-init itself."""
        done = self.host.run(["cloud-init", "status", "--wait", "--long"], timeout_s=within_s)
        warnings = self.host.run(["grep", "-a", "WARNING.*Fail", "/var/log/cloud-init.log"]).stdout
        if not done.ok or warnings:
            output = self.host.run(["tail", "-n", "60", "/var/log/cloud-init-output.log"]).stdout
            raise RuntimeError(f"cloud-init of {self.name}: {done.stdout}{warnings}\n{output}")

    def hold(self) -> None:
        """Stand still, as between two instructions."""
        self._ask("stop")

    def resume(self) -> None:
        """Go on, when the snapshot is there."""
        self._ask("cont")

    def save(self, snapshot: str = SNAPSHOT) -> None:
        """Keep disk and memory as they are now, inside the disk's file, and end qemu, which completes it."""
        complaint = self._ask("human-monitor-command", {"command-line": f"savevm {snapshot}"})
        if complaint:
            raise RuntimeError(f"savevm of {self.name}: {complaint}")
        self._ask("quit")
        assert self._qemu is not None
        self._qemu.wait(60)
        self.stop()

    def stop(self) -> None:
        """Switch it off, without a word to it."""
        self.host.hang_up()
        if self._qemu is not None:
            self._qemu.close()
            self._qemu = None

    def keep(self, folder: Path) -> None:
        """Copy what a later run starts from."""
        shutil.copyfile(self.disk, folder / self.disk.name)
        shutil.copyfile(self.seed, folder / self.seed.name)

    def take(self, folder: Path) -> None:
        """The reverse of `keep`."""
        shutil.copyfile(folder / self.disk.name, self.disk)
        shutil.copyfile(folder / self.seed.name, self.seed)

    def _ask(self, command: str, arguments: Mapping[str, str] = {}) -> object:
        """A QMP command (QEMU Machine Protocol) and its answer; taken when the snapshot is loaded."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(120)
            until(lambda: self._reached(monitor), f"qemu of {self.name} listens")
            with monitor.makefile("rw") as lines:
                lines.readline()  # the greeting
                for request in (
                    {"execute": "qmp_capabilities"},
                    {"execute": command, "arguments": arguments},
                ):
                    lines.write(json.dumps(request) + "\n")
                    lines.flush()
                    answer = {}
                    while "return" not in answer and "error" not in answer:  # events come in between
                        answer = json.loads(lines.readline())
                    if "error" in answer:
                        raise RuntimeError(f"{command} of {self.name}: {answer['error']}")
                return answer["return"]

    def _reached(self, monitor: socket.socket) -> bool:
        self._check_running()
        return monitor.connect_ex(str(self._hypervisor.path(f"{FOLDER}/{self.name}.qmp"))) == 0

    def _check_running(self) -> None:
        assert self._qemu is not None
        if not self._qemu.running:
            raise RuntimeError(f"qemu of {self.name} ended:\n{self._qemu.log}")


def mac(number: int) -> str:
    """A locally administered address."""
    return f"52:54:00:54:47:{number:02x}"
