"""Owns what a TCX file says."""

from __future__ import annotations

from datetime import datetime
from typing import Final
from xml.sax.xmlreader import AttributesImpl

from runtime.errors import invalid
from services.uploads import activity_xml as xml
from services.uploads.activity_summary import NO_ACTIVITY, Kind, Summary
from services.uploads.activity_track import Mean, Track, first


class Tcx:
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
                self._starts.append(xml.time(attributes["StartTime"]))
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
            if text:
                self._lap[parent if element == "Value" else element] = xml.number(text)
        elif element == "Name" and parent == "Creator":
            self._device = text

    def _in_point(self, element: str, parent: str, text: str) -> None:
        if element == "Trackpoint":
            latitude, longitude = (self._degrees.get(name) for name in ("LatitudeDegrees", "LongitudeDegrees"))
            position = None if latitude is None or longitude is None else xml.position(latitude, longitude)
            self._track.point(time=self._time, position=position, **self._point)
        elif element == "Time":
            self._time = xml.time(text)
        elif element in ("LatitudeDegrees", "LongitudeDegrees"):
            self._degrees[element] = text
        elif element == "Value" and parent == "HeartRateBpm":
            self._point["heart_rate"] = xml.number(text)
        elif element in self._SENSORS:
            self._point[self._SENSORS[element]] = xml.number(text)

    def summary(self) -> Summary:
        track = self._track
        start = min(self._starts, default=track.start)
        if not self._sports or start is None:
            raise invalid("file", "holds no activity with a time, so it is no recording", NO_ACTIVITY)
        if len(self._sports) > 1 and not self._multisport:
            raise invalid("file", "holds several activities; send each on its own", "INVALID_FORMAT")
        return Summary(
            kind=Kind.TCX,
            sport="multisport" if len(self._sports) > 1 else xml.sport(self._sports[0]),
            start_time=start,
            duration_seconds=first(self._total("TotalTimeSeconds"), track.duration),
            distance_meters=first(self._total("DistanceMeters"), track.distance),
            elevation_gain_meters=track.climb.gain,
            avg_heart_rate=first(self._of_laps("AverageHeartRateBpm").value, track.heart_rate.value),
            max_heart_rate=first(self._of_laps("MaximumHeartRateBpm").maximum, track.heart_rate.maximum),
            avg_power_watts=first(self._of_laps("AvgWatts").value, track.power.value),
            max_power_watts=first(self._of_laps("MaxWatts").maximum, track.power.maximum),
            calories=self._total("Calories"),
            avg_cadence=first(
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
