"""Owns what the reference is made of: the generated document, the page, and the Swagger UI that it runs."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from satchel.health.v1 import reference_pb2

from runtime.static import StaticFiles

DOCUMENT: Final = "openapi.json"
PAGE: Final = "docs.html"

_OWN: Final = Path(__file__).parent / "reference"
# Written beside the Python of the protos.
_GENERATED: Final = Path(reference_pb2.__file__).parents[3] / DOCUMENT
# The package's files by the names that Swagger UI itself gives them. It is not imported: that would read all of them.
_PACKAGE: Final = "offapi"
_SWAGGER_UI: Final = {"swagger-ui.css": "swagger_style.css", "swagger-ui-bundle.js": "swagger_bundle.js"}

# What Swagger UI needs: to load its own parts, to draw icons that are data, and to call this server.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE_HEADERS: Final = (("content-security-policy", _POLICY), ("referrer-policy", "no-referrer"))


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The files of the reference, by who asks for them."""

    document: StaticFiles
    page: StaticFiles
    parts: StaticFiles
    """What the page loads."""


def read_reference() -> Reference:
    """The reference as it was generated and installed."""
    parts = {name: (_OWN / name).read_bytes() for name in ("start.js", "satchel.svg")}
    parts |= {name: (_swagger_ui() / file).read_bytes() for name, file in _SWAGGER_UI.items()}
    return Reference(
        document=StaticFiles({DOCUMENT: _GENERATED.read_bytes()}),
        page=StaticFiles({PAGE: (_OWN / PAGE).read_bytes()}, headers=_PAGE_HEADERS),
        parts=StaticFiles(parts),
    )


def _swagger_ui() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"the package {_PACKAGE} is not installed", name=_PACKAGE)
    return Path(spec.origin).parent
