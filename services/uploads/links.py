"""Owns the links to files: what file_url is, and links that whoever holds them may follow for a while."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode
from uuid import UUID

from runtime.errors import Failure, Reason, invalid

if TYPE_CHECKING:
    from services.uploads.uploads_domain import Upload

_PURPOSE: Final = b"satchel signed links"


class Links:
    """Makes links, and checks those that are signed.

    A signature is HMAC-SHA256 (RFC 2104) over the file's id and the second at which the link dies.
    """

    def __init__(self, public_url: str, secret: bytes, endings: Mapping[str, str]) -> None:
        """`secret` is the mesh's, of which the key is derived; `endings` tells how names end, by media type."""
        self._base = public_url.rstrip("/")
        self._key = hmac.digest(secret, _PURPOSE, hashlib.sha256)
        self._endings = endings

    def name(self, upload: Upload) -> str:
        """What a file is called in links: its id, and the ending of its type."""
        ending = self._endings.get(upload.mime_type)
        return f"{upload.id}.{ending}" if ending else str(upload.id)

    def url(self, upload: Upload) -> str:
        """Where a file is read by its owner."""
        return f"{self._base}/files/{self.name(upload)}"

    def signed_url(self, upload: Upload, until: datetime) -> str:
        """Where anybody reads it until then."""
        expires = int(until.timestamp())
        query = urlencode({"expires": expires, "signature": self._signature(upload.id, expires)})
        return f"{self.url(upload)}?{query}"

    def check(self, id: UUID, expires: str, signature: str, now: datetime) -> None:
        """Raises Failure: FIELD_INVALID for a link that we did not sign, LINK_EXPIRED after its time."""
        if not expires.isascii() or not expires.isdigit() or len(expires) > 12:
            raise invalid("expires", "must be a time in seconds", "INVALID_FORMAT")
        if not hmac.compare_digest(self._signature(id, int(expires)).encode(), signature.encode()):
            raise Failure(Reason.FORBIDDEN, "The link is not one that was signed here.")
        if datetime.fromtimestamp(int(expires), UTC) <= now:
            raise Failure(Reason.LINK_EXPIRED)

    def _signature(self, id: UUID, expires: int) -> str:
        return hmac.new(self._key, f"{id} {expires}".encode(), hashlib.sha256).hexdigest()
