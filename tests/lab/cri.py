"""PullImage of the Container Runtime Interface, as the kubelet sends it, over a runtime's Unix socket.

CRI v1 (k8s.io/cri-api, runtime/v1/api.proto): `ImageService.PullImage`, its two messages encoded by hand so
that no generated code is needed. Not a kubelet: no sandbox, no credential provider, no retry.

Runs on a host as a file of its own: `cri.py SOCKET REFERENCE [USER PASSWORD]`; prints the image's id.
"""

from __future__ import annotations

import sys

import grpc

PULL_IMAGE = "/runtime.v1.ImageService/PullImage"
LENGTH_DELIMITED = 2
TIMEOUT_S = 80


def pull_image_request(reference: str, login: tuple[str, str] | None) -> bytes:
    """PullImageRequest { ImageSpec image = 1 { string image = 1 }; AuthConfig auth = 2 }."""
    request = field(1, field(1, reference.encode()))
    if login is not None:
        request += field(2, field(1, login[0].encode()) + field(2, login[1].encode()))
    return request


def field(number: int, value: bytes) -> bytes:
    """A length-delimited field in protobuf's wire format."""
    return bytes([number << 3 | LENGTH_DELIMITED]) + varint(len(value)) + value


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def main() -> None:
    socket, reference, *login = sys.argv[1:]
    with grpc.insecure_channel(f"unix://{socket}") as channel:
        pull = channel.unary_unary(PULL_IMAGE)  # without serializers: bytes in, bytes out
        try:
            answer = pull(
                pull_image_request(reference, (login[0], login[1]) if login else None), timeout=TIMEOUT_S
            )
        except grpc.RpcError as error:
            # What a failed call raises is its Call, too (grpc's documentation of RpcError).
            sys.exit(f"{error.code()}: {error.details()}")
    # PullImageResponse { string image_ref = 1 }: tag, length (below 128), the digest
    sys.stdout.write(f"{answer[2:].decode()}\n")


if __name__ == "__main__":
    main()
