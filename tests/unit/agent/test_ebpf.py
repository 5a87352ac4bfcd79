"""The eBPF back end without a kernel: the object as it is shipped, its records, and what a refusal means."""

import errno
import struct
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_agent.steering.ebpf import elf, records
from tidegate_agent.steering.ebpf.hooks import HOOKS, compiled
from tidegate_agent.steering.ebpf.refusal import missing_rights, refusal, root_cgroup
from tidegate_agent.steering.ebpf.syscall import BpfError
from tidegate_agent.steering.exemption import DEFAULT_MARK, ByUid
from tidegate_agent.steering.plan import MAX_ENDPOINTS
from tidegate_core.errors import StartRefused
from tidegate_proxy.endpoint import Endpoint

V4, V6 = Endpoint.of("192.0.2.1", 443), Endpoint.of("2001:db8::1", 5000)
OBJECT = Path(elf.__file__).with_name("steer.bpf.o").read_bytes()


def test_the_shipped_object_has_every_hook_and_its_maps() -> None:
    """N14: four programs, five maps, no more room than nft's sets have (I8), the project's licence."""
    found = elf.parse(OBJECT)

    assert set(found.programs) == {hook.section for hook in HOOKS}
    assert set(found.maps) == {"settings", "lease", "steered4", "steered6", "originals"}
    assert {found.maps[name].max_entries for name in ("steered4", "steered6")} == {MAX_ENDPOINTS}
    assert found.maps["originals"].max_entries <= MAX_ENDPOINTS
    assert found.license == "Apache-2.0"
    assert all(len(hook.name) < 16 and hook.name.startswith("tide") for hook in HOOKS)


def stores_on_the_stack(code: bytes) -> Iterator[tuple[int, int]]:
    """Offset from the frame pointer and bytes of each store through it: STX and ST to r10 (RFC 9669, 5.2)."""
    sizes = {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}
    for opcode, registers, offset, _immediate in struct.iter_unpack("<BBhi", code):
        if opcode & 0x07 in (0x02, 0x03) and registers & 0x0F == 10:
            yield offset, sizes[opcode & 0x18]


@pytest.mark.parametrize("section", [hook.section for hook in HOOKS])
def test_no_slot_of_the_stack_is_stored_in_parts(section: str) -> None:
    """N14: Linux 6.1 refuses that to a process without CAP_PERFMON: "attempt to corrupt spilled pointer"."""
    parts: dict[int, set[tuple[int, int]]] = {}
    for offset, width in stores_on_the_stack(compiled().programs[section].code):
        parts.setdefault(offset // 8, set()).add((offset, width))

    assert parts
    assert {slot: stores for slot, stores in parts.items() if len({at for at, _width in stores}) > 1} == {}


def test_the_records_are_as_long_as_the_maps_want_them() -> None:
    """The structs of the C source and what is packed here are one layout."""
    maps = compiled().maps
    redirect = records.redirect(until_ns=1, to_port=8443)
    sizes = {
        "settings": (records.FIRST, records.settings(netns_cookie=1, exemption=DEFAULT_MARK)),
        "lease": (records.FIRST, records.time_ns(1)),
        "steered4": (records.endpoint(V4), redirect),
        "steered6": (records.endpoint(V6), redirect),
        "originals": (records.cookie(1), bytes(24)),
    }

    for name, (key, value) in sizes.items():
        assert (maps[name].key_bytes, maps[name].value_bytes) == (len(key), len(value)), name
    assert len(records.NO_LEASE) == maps["lease"].value_bytes


def test_addresses_and_ports_are_in_network_byte_order() -> None:
    """As the kernel hands them to the programs."""
    assert records.endpoint(V4) == bytes([192, 0, 2, 1, 0x01, 0xBB, 0, 0])
    assert records.endpoint(V6) == ip_address("2001:db8::1").packed + bytes([0x13, 0x88, 0, 0, 0, 0, 0, 0])
    assert records.redirect(until_ns=5, to_port=8443) == struct.pack("=Q", 5) + b"\x20\xfb" + bytes(6)


def test_an_exemption_is_a_mark_under_its_mask_or_a_uid() -> None:
    """I5: the number says which; the rest is compared by the program."""
    by_mark = records.settings(netns_cookie=7, exemption=DEFAULT_MARK)
    by_uid = records.settings(netns_cookie=7, exemption=ByUid(uid=998))

    assert struct.unpack_from("=QIII", by_mark) == (7, 1, 0x74, 0xFF)
    assert struct.unpack_from("=QIII", by_uid) == (7, 2, 998, 0)


def test_an_original_destination_is_read_back_in_both_families() -> None:
    """N1: IPv4 is kept as ::ffff:a.b.c.d."""
    mapped = ip_address("::ffff:192.0.2.1").packed

    assert records.original(mapped + struct.pack("!HH", 443, 8443)) == V4
    assert records.original(V6.address.packed + struct.pack("!HH", 5000, 8443)) == V6


def test_linking_puts_each_map_s_descriptor_where_it_is_loaded() -> None:
    """What libbpf would do: BPF_PSEUDO_MAP_FD, and the descriptor for the value."""
    program = elf.Program(code=bytes([0x18, 0x01]) + bytes(14), maps=((0, "lease"),))

    assert program.linked({"lease": 9}) == bytes([0x18, 0x11, 0, 0, 9, 0, 0, 0]) + bytes(8)


@given(st.integers(0, len(OBJECT) - 1), st.integers(0, 255))
def test_an_object_that_is_damaged_or_cut_short_is_read_or_refused(at: int, value: int) -> None:
    """Nothing but ValueError comes out."""
    for damaged in (OBJECT[:at], OBJECT[:at] + bytes([value]) + OBJECT[at + 1 :]):
        try:
            elf.parse(damaged)
        except ValueError:
            continue


def test_an_object_for_another_machine_is_refused() -> None:
    """`/usr/bin/true` is no program of ours."""
    with pytest.raises(ValueError, match="not a little-endian 64-bit ELF object for BPF"):
        elf.parse(Path("/bin/true").read_bytes())


def proc(folder: Path, *, mounts: str = "", first: str = "0::/init.scope\n", capabilities: int = 0) -> Path:
    for process, name, text in (
        ("self", "mountinfo", mounts),
        ("1", "cgroup", first),
        ("self", "status", f"Name:\tagent\nCapEff:\t{capabilities:016x}\nCapBnd:\t0\n"),
    ):
        (folder / process).mkdir(exist_ok=True)
        (folder / process / name).write_text(text)
    return folder


def unified(folder: Path) -> str:
    """A line of mountinfo: version 2 at this folder, which is not the root of all cgroups."""
    return f"30 25 0:26 / {folder} rw,nosuid - cgroup2 cgroup2 rw\n"


def test_programs_are_attached_where_version_2_is_mounted(tmp_path: Path) -> None:
    """N14: also beside version 1, and where an init system runs in a container."""
    version_1 = f"31 25 0:27 / {tmp_path}/memory rw - cgroup cgroup rw,memory\n"

    assert root_cgroup(proc(tmp_path, mounts=version_1 + unified(tmp_path))) == tmp_path


@pytest.mark.parametrize(
    ("mounted", "first", "cause"),
    [
        (False, "0::/\n", "no cgroup2 file system is mounted here"),
        (True, "1:cpu:/\n0::/../../init.scope\n", "only a part of the host's cgroups"),
        (True, "0::/..\n", "only a part of the host's cgroups"),
        (True, "0::/\n", "only a part of the host's cgroups"),
    ],
)
def test_where_other_processes_would_not_be_seen_the_start_is_refused(
    tmp_path: Path, mounted: bool, first: str, cause: str
) -> None:
    """I3: better not at all than for the agent alone."""
    with pytest.raises(StartRefused, match=cause) as refused:
        root_cgroup(proc(tmp_path, mounts=unified(tmp_path) if mounted else "", first=first))

    assert 'backend = "nft"' in refused.value.next_step


@pytest.mark.parametrize(
    ("capabilities", "lacking"),
    [
        (0, ["CAP_NET_ADMIN", "CAP_BPF"]),
        (1 << 12, ["CAP_BPF"]),
        (1 << 39, ["CAP_NET_ADMIN"]),
        (1 << 12 | 1 << 39, []),
        (1 << 21, []),
    ],
)
def test_what_the_process_may_is_read_from_its_status(
    tmp_path: Path, capabilities: int, lacking: list[str]
) -> None:
    """CAP_SYS_ADMIN is all that CAP_BPF is, and more."""
    assert missing_rights(proc(tmp_path, capabilities=capabilities)) == lacking


@pytest.mark.parametrize(
    ("number", "lacking", "cause"),
    [
        (errno.EPERM, ["CAP_BPF"], r"no right to load eBPF programs \(CAP_BPF\)"),
        (errno.EPERM, [], "lockdown, a security module or a system call filter forbids it"),
        (errno.ENOSYS, [], "has no eBPF"),
        (errno.EINVAL, [], "loading program tide_connect4: EINVAL"),
        (errno.ENOPROTOOPT, ["CAP_BPF"], "ENOPROTOOPT"),
    ],
)
def test_a_refusal_is_explained(number: int, lacking: list[str], cause: str) -> None:
    """The operator reads a cause and what to type, not a number."""
    refused = refusal(BpfError(number, doing="loading program tide_connect4"), lacking=lacking)

    with pytest.raises(StartRefused, match=cause):
        raise refused
    assert 'backend = "nft"' in refused.next_step


def test_what_the_verifier_said_is_part_of_the_refusal() -> None:
    """A kernel that does not like a program says why."""
    error = BpfError(errno.EACCES, doing="loading program x", detail="R1 invalid mem access")

    assert "EACCES" in str(error)
    assert "R1 invalid mem access" in refusal(error, lacking=[]).cause
