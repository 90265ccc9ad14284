"""Owns what GPX and TCX files say, read as a stream: nothing of the document is kept but what it adds up to."""

from __future__ import annotations

import math
from codecs import getincrementaldecoder
from collections.abc import Mapping
from datetime import datetime
from typing import Final, Protocol
from xml.sax import SAXException
from xml.sax.handler import ContentHandler
from xml.sax.xmlreader import AttributesImpl

from defusedxml import DefusedXmlException
from defusedxml.expatreader import create_parser

from runtime.clock import parse_time
from runtime.errors import Failure, invalid
from services.uploads.activity_summary import UNNAMED_SPORT, Kind, Summary
from services.uploads.activity_track import Mean, Position, Track, checked_position

MAX_DEPTH: Final = 32  # GPX and TCX with all known extensions stay below 12
_BYTES_AT_ONCE: Final = 64 * 1024
# What programs write into GPX's <type> and what TCX's Sport may be, in the words of the FIT profile. The numbers are
# those of Strava's exports.
_SPORTS: Final[Mapping[str, str]] = {
    "run": "running",
    "9": "running",
    "bike": "cycling",
    "biking": "cycling",
    "ride": "cycling",
    "1": "cycling",
    "walk": "walking",
    "10": "walking",
    "hike": "hiking",
    "4": "hiking",
    "swim": "swimming",
    "other": UNNAMED_SPORT,
}


class _Format(Protocol):
    """What one kind of document does with its elements; `path` are the local names from the root to the element."""

    def opened(self, path: list[str], attributes: AttributesImpl) -> None: ...
    def closed(self, path: list[str], text: str) -> None: ...
    def summary(self) -> Summary: ...


def read_xml(data: bytes) -> Summary:
    """The summary of a GPX or TCX recording.

    Raises Failure(FIELD_INVALID) for XML that is neither, is broken, is not in UTF-8 or declares a document type
    (nothing of which is ever followed), and for routes, courses and workouts, which nobody has done yet.
    """
    document = _Document()
    parser = create_parser(forbid_dtd=True)
    parser.setContentHandler(document)
    # The parser is given text, so that no document says in which encoding it is read.
    decoder = getincrementaldecoder("utf-8-sig")()
    try:
        # Piece by piece, since text may take four times the memory of its bytes.
        for start in range(0, len(data), _BYTES_AT_ONCE):
            parser.feed(decoder.decode(data[start : start + _BYTES_AT_ONCE]))
        parser.feed(decoder.decode(b"", final=True))
        parser.close()
    except DefusedXmlException:
        raise invalid("file", "declares a document type, which recordings do not", "INVALID_FORMAT") from None
    except UnicodeDecodeError:
        raise invalid("file", "is XML, but not in UTF-8", "INVALID_FORMAT") from None
    except (SAXException, ValueError):
        raise invalid("file", "is damaged: it is no well-formed XML", "INVALID_FORMAT") from None
    return document.format.summary()


class _Document(ContentHandler):
    """Follows the elements, and leaves what they mean to the format that the root names."""

    format: _Format

    def __init__(self) -> None:
        super().__init__()
        self._path: list[str] = []
        self._text: list[str] = []

    def startElement(self, name: str, attrs: AttributesImpl) -> None:
        local = name.rpartition(":")[2]
        if not self._path:
            self.format = _format(local)
        elif len(self._path) >= MAX_DEPTH:
            raise invalid("file", f"is nested deeper than {MAX_DEPTH} levels", "TOO_DEEP")
        self._path.append(local)
        self._text.clear()
        self.format.opened(self._path, attrs)

    def characters(self, content: str) -> None:
        self._text.append(content)

    def endElement(self, name: str) -> None:
        self.format.closed(self._path, "".join(self._text).strip())
        self._path.pop()
        self._text.clear()


def _format(root: str) -> _Format:
    if root == "gpx":
        return _Gpx()
    if root == "TrainingCenterDatabase":
        return _Tcx()
    raise invalid("file", "is XML, but neither GPX nor TCX", "INVALID_FORMAT")


class _Gpx:
    """Reads the tracks of GPX 1.0 and 1.1, all of a file as one activity; a segment ends where the receiver paused.

    Duration is the time inside segments, the nearest that GPX has to a timer. Sensors are read from Garmin's
    TrackPointExtension and the <power> of Strava and others.
    """

    _SENSORS: Final = {"hr": "heart_rate", "cad": "cadence", "power": "power", "PowerInWatts": "power"}

    def __init__(self) -> None:
        self._track = Track()
        self._creator = ""
        self._sport = ""
        self._position: Position | None = None
        self._time: datetime | None = None
        self._numbers: dict[str, float | None] = {}

    def opened(self, path: list[str], attributes: AttributesImpl) -> None:
        element = path[-1]
        if element == "trkpt":
            self._position = _position(attributes.get("lat", ""), attributes.get("lon", ""))
            self._time = None
            self._numbers = {}
        elif element == "trkseg":
            self._track.pause()
        elif len(path) == 1:
            self._creator = attributes.get("creator", "")

    def closed(self, path: list[str], text: str) -> None:
        element = path[-1]
        if element == "trkpt":
            self._track.point(time=self._time, position=self._position, **self._numbers)
        elif "trkpt" in path:
            if element == "time" and path[-2] == "trkpt":
                self._time = _time(text)
            elif element == "ele" and path[-2] == "trkpt":
                self._numbers["altitude"] = _number(text)
            elif element in self._SENSORS:
                self._numbers[self._SENSORS[element]] = _number(text)
        elif element == "type" and path[-2] == "trk" and not self._sport:
            self._sport = text

    def summary(self) -> Summary:
        track = self._track
        if track.start is None:
            raise invalid("file", "holds no track with times, so it is no recording", "INVALID_FORMAT")
        return Summary(
            kind=Kind.GPX,
            sport=_sport(self._sport),
            start_time=track.start,
            duration_seconds=track.duration,
            distance_meters=track.distance,
            elevation_gain_meters=track.climb.gain,
            avg_heart_rate=track.heart_rate.value,
            max_heart_rate=track.heart_rate.maximum,
            avg_power_watts=track.power.value,
            max_power_watts=track.power.maximum,
            avg_cadence=track.cadence.value,
            device=self._creator,
        )


class _Tcx:
    """Reads the activity of a TCX file: what the device has summed up per lap goes before what its points add up to.

    Duration is the sum of TotalTimeSeconds, the timer's. Averages of laps have the weight of that time. The activities
    of a multi-sport session are one; other files with several activities are a history, and refused.
    """

    _SENSORS: Final = {"Watts": "power", "RunCadence": "cadence", "Cadence": "cadence", "AltitudeMeters": "altitude"}

    def __init__(self) -> None:
        self._track = Track()
        self._sports: list[str] = []
        self._multisport = False
        self._device = ""
        self._starts: list[datetime] = []
        self._lap: dict[str, float | None] = {}
        self._laps: list[dict[str, float | None]] = []
        self._point: dict[str, float | None] = {}
        self._time: datetime | None = None
        self._degrees: dict[str, str] = {}

    def opened(self, path: list[str], attributes: AttributesImpl) -> None:
        element = path[-1]
        if element == "Activity":
            self._sports.append(attributes.get("Sport", ""))
        elif element == "MultiSportSession":
            self._multisport = True
        elif element == "Lap" and self._sports:
            self._lap = {}
            if "StartTime" in attributes:
                self._starts.append(_time(attributes["StartTime"]))
        elif element == "Track":
            self._track.pause()
        elif element == "Trackpoint":
            self._point, self._time, self._degrees = {}, None, {}

    def closed(self, path: list[str], text: str) -> None:
        if not self._sports or len(path) < 2:
            return
        element, parent = path[-1], path[-2]
        if "Trackpoint" in path:
            self._in_point(element, parent, text)
        elif element == "Lap":
            self._laps.append(self._lap)
        elif "Lap" in path:
            # The value of a heart rate is an element of its own, and AvgWatts and the like stand in extensions.
            self._lap[parent if element == "Value" else element] = _number(text)
        elif element == "Name" and parent == "Creator":
            self._device = text

    def _in_point(self, element: str, parent: str, text: str) -> None:
        if element == "Trackpoint":
            degrees = self._degrees
            position = _position(degrees["LatitudeDegrees"], degrees["LongitudeDegrees"]) if len(degrees) == 2 else None
            self._track.point(time=self._time, position=position, **self._point)
        elif element == "Time":
            self._time = _time(text)
        elif element in ("LatitudeDegrees", "LongitudeDegrees"):
            self._degrees[element] = text
        elif element == "Value" and parent == "HeartRateBpm":
            self._point["heart_rate"] = _number(text)
        elif element in self._SENSORS:
            self._point[self._SENSORS[element]] = _number(text)

    def summary(self) -> Summary:
        track = self._track
        start = min(self._starts, default=track.start)
        if not self._sports or start is None:
            raise invalid("file", "holds no activity with a time, so it is no recording", "INVALID_FORMAT")
        if len(self._sports) > 1 and not self._multisport:
            raise invalid("file", "holds several activities; send each on its own", "INVALID_FORMAT")
        return Summary(
            kind=Kind.TCX,
            sport="multisport" if len(self._sports) > 1 else _sport(self._sports[0]),
            start_time=start,
            duration_seconds=_first(self._total("TotalTimeSeconds"), track.duration),
            distance_meters=_first(self._total("DistanceMeters"), track.distance),
            elevation_gain_meters=track.climb.gain,
            avg_heart_rate=_first(self._of_laps("AverageHeartRateBpm").value, track.heart_rate.value),
            max_heart_rate=_first(self._of_laps("MaximumHeartRateBpm").maximum, track.heart_rate.maximum),
            avg_power_watts=_first(self._of_laps("AvgWatts").value, track.power.value),
            max_power_watts=_first(self._of_laps("MaxWatts").maximum, track.power.maximum),
            calories=self._total("Calories"),
            avg_cadence=_first(
                self._of_laps("AvgRunCadence").value, self._of_laps("Cadence").value, track.cadence.value
            ),
            device=self._device,
        )

    def _total(self, name: str) -> float | None:
        numbers = [number for number in (lap.get(name) for lap in self._laps) if number is not None]
        return sum(numbers) if numbers else None

    def _of_laps(self, name: str) -> Mean:
        mean = Mean()
        for lap in self._laps:
            mean.add(lap.get(name), max(lap.get("TotalTimeSeconds") or 0.0, 1e-3))
        return mean


def _sport(text: str) -> str:
    word = "_".join(text.lower().split())
    return _SPORTS.get(word, word) or UNNAMED_SPORT


def _position(latitude: str, longitude: str) -> Position:
    numbers = _number(latitude), _number(longitude)
    return checked_position(*(math.nan if number is None else number for number in numbers))


def _time(text: str) -> datetime:
    try:
        return parse_time("file", text)
    except Failure:
        raise invalid("file", "holds a time that is none", "INVALID_FORMAT") from None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _first(*values: float | None) -> float | None:
    return next((one for one in values if one is not None), None)
