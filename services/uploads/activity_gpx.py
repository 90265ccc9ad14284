"""Owns what a GPX file says."""

from __future__ import annotations

from datetime import datetime
from typing import Final
from xml.sax.xmlreader import AttributesImpl

from runtime.errors import invalid
from services.uploads import activity_xml as xml
from services.uploads.activity_summary import NO_ACTIVITY, Kind, Summary
from services.uploads.activity_track import Position, Track


class Gpx:
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
            self._position = xml.position(attributes.get("lat", ""), attributes.get("lon", ""))
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
                self._time = xml.time(text)
            elif element == "ele" and path[-2] == "trkpt":
                self._numbers["altitude"] = xml.number(text)
            elif element in self._SENSORS:
                self._numbers[self._SENSORS[element]] = xml.number(text)
        elif element == "type" and path[-2] == "trk" and not self._sport:
            self._sport = text

    def summary(self) -> Summary:
        track = self._track
        if track.start is None:
            raise invalid("file", "holds no track with times, so it is no recording", NO_ACTIVITY)
        return Summary(
            kind=Kind.GPX,
            sport=xml.sport(self._sport),
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
