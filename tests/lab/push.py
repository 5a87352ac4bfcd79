"""Pushes one manifest and its blobs to a registry that speaks plain HTTP (OCI distribution-spec, "Push").

Runs on a host as a file of its own (standard library only): what to push is a JSON object on standard input.
"""

import http.client
import json
import sys
from urllib.parse import quote, urlsplit


def main() -> None:
    pushed = json.load(sys.stdin)
    connection = http.client.HTTPConnection(pushed["registry"], timeout=20)
    repository = f"/v2/{pushed['repository']}"

    def send(method: str, target: str, body: bytes = b"", **headers: str) -> http.client.HTTPResponse:
        connection.request(method, target, body, {"Authorization": f"Bearer {pushed['token']}", **headers})
        response = connection.getresponse()
        answer = response.read()
        if response.status not in (201, 202):
            sys.exit(f"{method} {target}: {response.status} {answer.decode()}")
        return response

    for digest, content in pushed["blobs"].items():
        upload = urlsplit(send("POST", f"{repository}/blobs/uploads/").headers["Location"])
        query = f"{upload.query}&digest={quote(digest)}"
        send("PUT", f"{upload.path}?{query}", content.encode("latin-1"))
    manifest = pushed["manifest"].encode()
    send("PUT", f"{repository}/manifests/{pushed['tag']}", manifest, **{"Content-Type": pushed["media_type"]})


if __name__ == "__main__":
    main()
