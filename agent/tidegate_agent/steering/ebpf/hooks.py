"""The programs in the kernel: loaded with their maps, and attached to a cgroup while steering is open.

All that keeps them there are descriptors of this process. Those of the links are its highest, which the
kernel closes first when the process dies: a connection that came to closed listeners would be refused.
"""

import os
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from tidegate_agent.steering.descriptor import moved_up
from tidegate_agent.steering.ebpf import elf
from tidegate_agent.steering.ebpf.syscall import Map, link, load


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """Where a program goes: its section in the object, the kernel's number of the hook, the name it shows."""

    section: str
    attach_type: int
    name: str


# enum bpf_attach_type of linux/bpf.h.
HOOKS = (
    Hook(section="cgroup/connect4", attach_type=10, name="tide_connect4"),
    Hook(section="cgroup/connect6", attach_type=11, name="tide_connect6"),
    Hook(section="cgroup/getpeername4", attach_type=29, name="tide_peername4"),
    Hook(section="cgroup/getpeername6", attach_type=30, name="tide_peername6"),
)


@cache
def compiled() -> elf.Compiled:
    """The package's own programs."""
    return elf.parse(files(__package__).joinpath("steer.bpf.o").read_bytes())


class Hooks:
    """Maps and programs from here on; links between `attach` and `detach`."""

    def __init__(self) -> None:
        """Load everything; raises BpfError, and then nothing is left."""
        self.maps: dict[str, Map] = {}
        self._programs: list[tuple[int, Hook]] = []
        self._links: list[int] = []
        object_file = compiled()
        try:
            for name, definition in object_file.maps.items():
                self.maps[name] = Map(f"tide_{name}", definition)
            descriptors = {name: each.fd for name, each in self.maps.items()}
            for hook in HOOKS:
                code = object_file.programs[hook.section].linked(descriptors)
                program = load(hook.name, code, attach_type=hook.attach_type, license=object_file.license)
                self._programs.append((program, hook))
        except BaseException:
            self.close()
            raise

    def attach(self, cgroup: Path) -> None:
        """Attach to the cgroup: every process below it is asked from here on; raises OSError."""
        directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for program, hook in self._programs:
                self._links.append(moved_up(link(program, directory, attach_type=hook.attach_type)))
        except BaseException:
            self.detach()
            raise
        finally:
            os.close(directory)

    def detach(self) -> None:
        """Leave the cgroup; idempotent."""
        while self._links:
            os.close(self._links.pop())

    def close(self) -> None:
        """Detach, and let go of programs and maps; idempotent."""
        self.detach()
        while self._programs:
            os.close(self._programs.pop()[0])
        while self.maps:
            self.maps.popitem()[1].close()
