"""Error bodies and their statuses, as the distribution specification has them."""

import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_proxy.oci.oci_error import STATUS, Code, OciError
from tidegate_proxy.oci.request_path import RequestRefused, parse_request

SPECIFIED = {
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
}


def test_every_code_of_the_specification_has_a_status() -> None:
    """C22: and the only code of another origin is the one for a dark upstream."""
    assert set(STATUS) == set(get_args(Code)) == SPECIFIED | {"UNAVAILABLE"}


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("BLOB_UNKNOWN", 404),
        ("MANIFEST_UNKNOWN", 404),
        ("NAME_UNKNOWN", 404),
        ("NAME_INVALID", 400),
        ("DIGEST_INVALID", 400),
        ("UNAUTHORIZED", 401),
        ("DENIED", 403),
        ("UNSUPPORTED", 405),
        ("TOOMANYREQUESTS", 429),
        ("UNAVAILABLE", 503),
    ],
)
def test_a_code_travels_under_the_status_that_clients_act_on(code: Code, status: int) -> None:
    """C7, C15: clients look at the status first."""
    assert OciError(code, "why").status == status


@given(
    st.sampled_from(get_args(Code)),
    st.text(),
    st.none() | st.dictionaries(st.text(), st.text()),
)
def test_a_body_reads_back_as_the_error_it_was_made_of(
    code: Code, message: str, detail: dict[str, str] | None
) -> None:
    """C22: one error in a list, whatever text is in it."""
    body = json.loads(OciError(code, message, detail).body())

    expected = {"code": code, "message": message}
    assert body == {"errors": [expected if detail is None else {**expected, "detail": detail}]}


def test_a_refusal_repeats_what_was_wrong_but_not_all_of_it() -> None:
    """C22: the detail helps a person, and stays small and plain ASCII."""
    with pytest.raises(RequestRefused) as refusal:
        parse_request("GET", "/v2/" + "É" * 10_000 + "/tags/list")
    body = refusal.value.error.body()

    assert json.loads(body)["errors"][0]["detail"] == {"name": "É" * 256}
    assert body.isascii() and len(body) < 4096
