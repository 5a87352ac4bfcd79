"""If-None-Match of a read (RFC 9110, 13.1.2), against content whose entity tag is its digest. Pure.

If-Match and the conditions on dates are not read: what has a digest has no date here.
"""

import re
from collections.abc import Sequence

from tidegate_proxy.oci.digest import Digest

_ENTITY_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')


def entity_tag(digest: Digest) -> str:
    """The ETag of content with that digest."""
    return f'"{digest}"'


def is_known(if_none_match: Sequence[str], digest: Digest) -> bool:
    """Whether the client has this content already: the answer is 304 then. Weak comparison (8.8.3.2)."""
    text = ", ".join(if_none_match).strip()
    return text == "*" or entity_tag(digest) in _ENTITY_TAG.findall(text)
