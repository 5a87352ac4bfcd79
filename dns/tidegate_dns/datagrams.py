"""Many datagrams with two system calls: recvmmsg(2) and sendmmsg(2), which Python's sockets do not offer.

Each datagram has a slot of its own memory, and is answered from there to whom it came from, so that neither
its address nor its first two octets, which an answer repeats, need ever become Python's. Knows nothing else
of DNS. Linux only, like the rest of the responder.
"""

import ctypes
import mmap
import socket
import struct

_SLOT = 1 << 16  # no datagram is larger
_HEAD = 2  # the octets that an answer repeats
_ADDRESS = 28  # struct sockaddr_in6, the larger of the two


class _Buffer(ctypes.Structure):  # struct iovec
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):  # struct msghdr
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("buffers", ctypes.c_void_p),
        ("buffer_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Datagram(ctypes.Structure):  # struct mmsghdr
    _fields_ = (("header", _Header), ("length", ctypes.c_uint))


_DATAGRAM = ctypes.sizeof(_Datagram)
_BUFFER = ctypes.sizeof(_Buffer)
_LENGTH, _LENGTHS = _Datagram.length.offset // 4, _DATAGRAM // 4  # in unsigned ints
_libc = ctypes.CDLL(None)
_libc.recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
_libc.sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)


class Datagrams:
    """What one socket receives at once, at most `count`, and what is sent in return.

    The memory is only touched as far as datagrams are long. Use: `receive`, any number of `reply`, `send`;
    `whole` and `sender` of a datagram before it is replied to.
    """

    def __init__(self, sock: socket.socket, count: int) -> None:
        self._sock = sock
        self._count = count
        self._replies: list[int] = []
        memory = mmap.mmap(-1, count * _SLOT)
        addresses = ctypes.create_string_buffer(count * _ADDRESS)
        buffers, datagrams = (_Buffer * count)(), (_Datagram * count)()
        memory_at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for number in range(count):
            buffers[number].base, buffers[number].length = memory_at + number * _SLOT, _SLOT
            header = datagrams[number].header
            header.name = ctypes.addressof(addresses) + number * _ADDRESS
            header.name_length = _ADDRESS
            header.buffers, header.buffer_count = ctypes.addressof(buffers) + number * _BUFFER, 1
        # The views keep what they look at alive, and with it what the kernel is told the addresses of.
        self._memory, self._addresses = memoryview(memory), memoryview(addresses)
        self._buffers, self._datagrams = memoryview(buffers).cast("B"), memoryview(datagrams).cast("B")
        self._buffer_lengths, self._lengths = self._buffers.cast("L"), self._datagrams.cast("I")
        self._fresh = bytes(self._buffers), bytes(self._datagrams)
        self._at = ctypes.addressof(datagrams)
        self._starts = range(0, count * _SLOT, _SLOT)

    def receive(self) -> list[bytes]:
        """What has arrived, oldest first, each behind its first two octets.

        Nothing when nothing has, or the socket has an error to tell.
        """
        # The kernel shortens the lengths that it is given, and a reply does.
        self._buffers[:], self._datagrams[:] = self._fresh
        self._replies.clear()
        received = _libc.recvmmsg(self._sock.fileno(), self._at, self._count, socket.MSG_DONTWAIT, None)
        memory = self._memory
        # -1 have been received when there are none.
        lengths = self._lengths[_LENGTH : max(0, received) * _LENGTHS : _LENGTHS]
        return [
            memory[start + _HEAD : start + length].tobytes()
            for start, length in zip(self._starts, lengths, strict=False)
        ]

    def whole(self, number: int) -> bytes:
        """A datagram with its first two octets."""
        start = number * _SLOT
        return self._memory[start : start + self._lengths[number * _LENGTHS + _LENGTH]].tobytes()

    def sender(self, number: int) -> tuple[str, int] | tuple[str, int, int, int]:
        """Where a datagram came from, as the socket module has it."""
        address = self._addresses[number * _ADDRESS : (number + 1) * _ADDRESS].tobytes()
        port = int.from_bytes(address[2:4], "big")
        if self._sock.family == socket.AF_INET:
            return socket.inet_ntop(socket.AF_INET, address[4:8]), port
        flow, scope = struct.unpack_from("!I", address, 4)[0], struct.unpack_from("=I", address, 24)[0]
        return socket.inet_ntop(socket.AF_INET6, address[8:24]), port, flow, scope

    def reply(self, number: int, rest: bytes) -> None:
        """Have the first two octets of a datagram, and `rest`, sent to its sender; in rising order.

        It is written in the datagram's place.
        """
        start = number * _SLOT + _HEAD
        end = start + len(rest)
        self._memory[start:end] = rest
        self._buffer_lengths[2 * number + 1] = end - start + _HEAD
        self._replies.append(number)

    def send(self) -> int:
        """Send the replies and say how many went; one that cannot be sent is as lost on the way."""
        sent = done = 0
        while done < len(self._replies):
            first = self._replies[done]
            end = done + 1
            while end < len(self._replies) and self._replies[end] == first + end - done:
                end += 1
            went = _libc.sendmmsg(
                self._sock.fileno(), self._at + first * _DATAGRAM, end - done, socket.MSG_DONTWAIT
            )
            sent += max(went, 0)
            done += went if went > 0 else 1  # what stopped it is told of the first only
        self._replies.clear()
        return sent
