"""Owns what a recording says: it knows FIT, GPX and TCX by their content and makes a summary of each."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Callable
from datetime import datetime

from runtime.clock import utc_now
from runtime.errors import invalid
from services.uploads.activity_fit import read_fit
from services.uploads.activity_gpx import Gpx
from services.uploads.activity_summary import Summary, believed
from services.uploads.activity_tcx import Tcx
from services.uploads.activity_xml import read_xml


def summarize(data: bytes, *, now: Callable[[], datetime] = utc_now) -> Summary:
    """What the recording says, whatever the name of its file is.

    Raises Failure(FIELD_INVALID) naming `file` for what is no whole recording of an activity. It may take long and much
    memory: strangers' data is read by services.uploads.activity_parsing.
    """
    return believed(_read(data), now())


def _read(data: bytes) -> Summary:
    if not data:
        raise invalid("file", "is empty", "REQUIRED")
    if data[8:12] == b".FIT":
        return read_fit(data)
    if data[:1000].removeprefix(BOM_UTF8).lstrip().startswith(b"<"):
        return read_xml(data, {"gpx": Gpx, "TrainingCenterDatabase": Tcx})
    raise invalid("file", "is neither FIT nor GPX nor TCX", "INVALID_FORMAT")
