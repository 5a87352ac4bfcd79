"""bpf(2) by its number: maps, programs and links, each a descriptor of this process and nothing else.

No library is needed on the node. Nothing is pinned, so the kernel takes everything away when the process
ends, however it does; it sets close-on-exec on every such descriptor. What they are for is not known here.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Mapping

from tidegate_agent.steering.ebpf.elf import MapDefinition

# Of machines with the byte order that the programs are compiled for.
_NUMBERS: Mapping[str, int] = {
    "x86_64": 321,
    "aarch64": 280,
    "riscv64": 280,
    "loongarch64": 280,
    "ppc64le": 361,
    "armv7l": 386,
}
_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _PROG_LOAD, _LINK_CREATE = 0, 1, 2, 3, 5, 28
_CGROUP_SOCK_ADDR = 18
_NAME_BYTES = 16
_LOG_BYTES = 1 << 16
_LOG_SHOWN = 800

_MAP_ATTRIBUTES = struct.Struct("=7I16s")
_ELEMENT = struct.Struct("=IxxxxQQQ")
_PROGRAM = struct.Struct("=IIQQIIQII16sII")
_LINK = struct.Struct("=IIII")


class BpfError(OSError):
    """The kernel refused a call: `doing` says which, `detail` is the verifier's own text if it said any."""

    def __init__(self, number: int, *, doing: str, detail: str = "") -> None:
        super().__init__(number, os.strerror(number))
        self.doing = doing
        self.detail = detail

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        name = errno.errorcode.get(self.errno or 0, str(self.errno))
        return f"{self.doing}: {name} {self.strerror}{detail}"


class Map:
    """A map; used from one thread, because the buffers are the map's own."""

    def __init__(self, name: str, definition: MapDefinition) -> None:
        """Create it; raises BpfError."""
        self.name = name
        attributes = _MAP_ATTRIBUTES.pack(
            definition.type,
            definition.key_bytes,
            definition.value_bytes,
            definition.max_entries,
            definition.flags,
            0,
            0,
            name.encode(),
        )
        self.fd = _bpf(_MAP_CREATE, attributes, doing=f"creating map {name}")
        self._key = ctypes.create_string_buffer(definition.key_bytes)
        self._value = ctypes.create_string_buffer(definition.value_bytes)
        self._element = _ELEMENT.pack(self.fd, ctypes.addressof(self._key), ctypes.addressof(self._value), 0)
        self._named = _ELEMENT.pack(self.fd, ctypes.addressof(self._key), 0, 0)

    def put(self, key: bytes, value: bytes) -> None:
        """Add or replace an element; raises BpfError."""
        self._key.raw, self._value.raw = key, value
        _bpf(_MAP_UPDATE, self._element, doing=f"adding to map {self.name}")

    def get(self, key: bytes) -> bytes | None:
        """An element's value, None when there is none; raises BpfError."""
        self._key.raw = key
        try:
            _bpf(_MAP_LOOKUP, self._element, doing=f"reading map {self.name}")
        except BpfError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return self._value.raw

    def delete(self, key: bytes) -> None:
        """Take an element out, if it is there; raises BpfError."""
        self._key.raw = key
        try:
            _bpf(_MAP_DELETE, self._named, doing=f"deleting from map {self.name}")
        except BpfError as error:
            if error.errno != errno.ENOENT:
                raise

    def close(self) -> None:
        """Close the descriptor; programs that use the map keep it."""
        os.close(self.fd)


def load(name: str, code: bytes, *, attach_type: int, license: str) -> int:
    """Load a program of type CGROUP_SOCK_ADDR; its descriptor. Raises BpfError."""
    instructions = ctypes.create_string_buffer(code, len(code))
    terms = ctypes.create_string_buffer(license.encode())
    log = ctypes.create_string_buffer(_LOG_BYTES)

    def attributes(log_level: int) -> bytes:
        return _PROGRAM.pack(
            _CGROUP_SOCK_ADDR,
            len(code) // 8,
            ctypes.addressof(instructions),
            ctypes.addressof(terms),
            log_level,
            _LOG_BYTES if log_level else 0,
            ctypes.addressof(log) if log_level else 0,
            0,
            0,
            name.encode(),
            0,
            attach_type,
        )

    doing = f"loading program {name}"
    try:
        return _bpf(_PROG_LOAD, attributes(0), doing=doing)
    except BpfError as error:
        try:  # again, to hear why
            return _bpf(_PROG_LOAD, attributes(1), doing=doing)
        except BpfError:
            said = log.value.decode(errors="replace").strip()[-_LOG_SHOWN:]
            raise BpfError(error.errno or 0, doing=doing, detail=said) from None


def link(program: int, cgroup: int, *, attach_type: int) -> int:
    """Attach a program to a cgroup for as long as the returned descriptor is open; raises BpfError."""
    doing = f"attaching a program to a cgroup (type {attach_type})"
    return _bpf(_LINK_CREATE, _LINK.pack(program, cgroup, attach_type, 0), doing=doing)


_libc = ctypes.CDLL(None, use_errno=True)
_number = _NUMBERS.get(platform.machine())


def _bpf(command: int, attributes: bytes, *, doing: str) -> int:
    if _number is None:
        raise BpfError(errno.ENOSYS, doing=doing, detail=f"not known how on {platform.machine()}")
    done: int = _libc.syscall(_number, command, attributes, len(attributes))
    if done < 0:
        raise BpfError(ctypes.get_errno(), doing=doing)
    return done
