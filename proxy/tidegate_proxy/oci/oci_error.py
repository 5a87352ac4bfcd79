"""Error answers of a registry: OCI distribution-spec, "Error Codes".

One table says which code travels under which HTTP status. The specification gives the codes and,
for most, no status; where it gives none the status is the one that the reference implementation
(distribution) answers. This module does not decide when something is an error.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Code = Literal[
    "BLOB_UNKNOWN",
    "BLOB_UPLOAD_INVALID",
    "BLOB_UPLOAD_UNKNOWN",
    "DIGEST_INVALID",
    "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID",
    "MANIFEST_UNKNOWN",
    "NAME_INVALID",
    "NAME_UNKNOWN",
    "SIZE_INVALID",
    "UNAUTHORIZED",
    "DENIED",
    "UNSUPPORTED",
    "TOOMANYREQUESTS",
    "UNAVAILABLE",  # not in the specification: what distribution and Docker Hub answer with a 503
]

STATUS: Mapping[Code, int] = {
    "BLOB_UNKNOWN": 404,
    "BLOB_UPLOAD_INVALID": 400,
    "BLOB_UPLOAD_UNKNOWN": 404,
    "DIGEST_INVALID": 400,
    "MANIFEST_BLOB_UNKNOWN": 404,
    "MANIFEST_INVALID": 400,
    "MANIFEST_UNKNOWN": 404,
    "NAME_INVALID": 400,
    "NAME_UNKNOWN": 404,
    "SIZE_INVALID": 400,
    "UNAUTHORIZED": 401,
    "DENIED": 403,
    "UNSUPPORTED": 405,
    "TOOMANYREQUESTS": 429,
    "UNAVAILABLE": 503,
}


@dataclass(frozen=True, slots=True)
class OciError:
    """One error for a client: code, a sentence for people, facts about the case (never a credential)."""

    code: Code
    message: str
    detail: Mapping[str, str] | None = None

    @property
    def status(self) -> int:
        """The HTTP status that the code travels under."""
        return STATUS[self.code]

    def body(self) -> bytes:
        """The JSON body, `{"errors":[{"code","message","detail"}]}`, without `detail` when there is none."""
        error: dict[str, object] = {"code": self.code, "message": self.message}
        if self.detail is not None:
            error["detail"] = dict(self.detail)
        return json.dumps({"errors": [error]}).encode()
