"""Reads the compiled programs: an ELF object for BPF as clang writes it (elf(5); psABI of BPF).

Only what `steer.bpf.o` holds is understood: 64 bits, least significant byte first, programs whose only
relocations are loads of maps, and map definitions of five numbers. No BTF and no libbpf. Pure.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQ")
_MAP = struct.Struct("<5I")
_LITTLE_64 = b"\x7fELF\x02\x01"
_MACHINE_BPF = 247
_REL = 9
_EXECUTABLE = 0x4
_R_BPF_64_64 = 1
_INSTRUCTION_BYTES = 8
_LOAD_64 = 0x18
_PSEUDO_MAP_FD = 1 << 4


@dataclass(frozen=True, slots=True, kw_only=True)
class MapDefinition:
    """What BPF_MAP_CREATE wants to know."""

    type: int
    key_bytes: int
    value_bytes: int
    max_entries: int
    flags: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Instructions, and which of them load which map."""

    code: bytes
    maps: tuple[tuple[int, str], ...]

    def linked(self, descriptors: Mapping[str, int]) -> bytes:
        """The instructions with the maps' descriptors in them."""
        code = bytearray(self.code)
        for offset, name in self.maps:
            code[offset + 1] = (code[offset + 1] & 0x0F) | _PSEUDO_MAP_FD
            struct.pack_into("<i", code, offset + 4, descriptors[name])
        return bytes(code)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """Everything of an object: maps by name, programs by the name of their section."""

    license: str
    maps: Mapping[str, MapDefinition]
    programs: Mapping[str, Program]


def parse(data: bytes) -> Compiled:
    """The object's programs; raises ValueError for anything but one of ours."""
    try:
        return _parse(data)
    except (struct.error, LookupError) as error:
        raise ValueError(f"not an object of BPF programs: {error}") from error


def _parse(data: bytes) -> Compiled:
    ident, _, machine, _, _, _, offset, _, _, _, _, _, count, names_at = _HEADER.unpack_from(data)
    if not ident.startswith(_LITTLE_64) or machine != _MACHINE_BPF:
        raise ValueError("not a little-endian 64-bit ELF object for BPF")
    sections = [_SECTION.unpack_from(data, offset + number * _SECTION.size) for number in range(count)]
    contents = [data[section[4] : section[4] + section[5]] for section in sections]
    names = [_text(contents[names_at], section[0]) for section in sections]
    table = names.index(".symtab")
    symbols = [
        (_text(contents[sections[table][6]], name), section, value)
        for name, _, _, section, value, _ in _SYMBOL.iter_unpack(contents[table])
    ]
    relocations = {section[7]: number for number, section in enumerate(sections) if section[1] == _REL}
    programs = {
        names[number]: Program(
            code=contents[number],
            maps=tuple(_loads(contents[number], contents[relocations[number]], symbols)),
        )
        for number, section in enumerate(sections)
        if section[2] & _EXECUTABLE and contents[number]
    }
    definitions = names.index("maps")
    return Compiled(
        license=_text(contents[names.index("license")], 0),
        maps={
            name: _map(contents[definitions], value)
            for name, section, value in symbols
            if section == definitions
        },
        programs=programs,
    )


def _loads(code: bytes, relocations: bytes, symbols: list[tuple[str, int, int]]) -> Iterator[tuple[int, str]]:
    for offset, info in _RELOCATION.iter_unpack(relocations):
        if info & 0xFFFFFFFF != _R_BPF_64_64 or code[offset] != _LOAD_64 or offset % _INSTRUCTION_BYTES:
            raise ValueError(f"a relocation of type {info & 0xFFFFFFFF} at {offset} loads no map")
        yield offset, symbols[info >> 32][0]


def _map(definitions: bytes, offset: int) -> MapDefinition:
    kind, key_bytes, value_bytes, max_entries, flags = _MAP.unpack_from(definitions, offset)
    return MapDefinition(
        type=kind, key_bytes=key_bytes, value_bytes=value_bytes, max_entries=max_entries, flags=flags
    )


def _text(strings: bytes, offset: int) -> str:
    return strings[offset : strings.index(b"\0", offset)].decode("ascii")
