"""Owns what the points of a recording add up to: the formulas, each with its source."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Final

from runtime.errors import invalid

# The mean radius R1 of the Earth by the IUGG, (2a + b) / 3 of WGS 84: Moritz, "Geodetic Reference System 1980", Journal
# of Geodesy 74 (2000). On a sphere of that size no distance is off by more than 0.6 % of the ellipsoid's.
EARTH_RADIUS_METERS: Final = 6_371_008.8
# GoldenCheetah's default "elevation hysteresis". A barometer wanders by less than a meter and satellites by several; a
# file does not say where its altitudes are from. Without a threshold an hour on a flat road climbs hundreds of meters.
CLIMB_THRESHOLD_METERS: Final = 3.0
# What a sensor says stands for the time since the point before: devices that save memory write a point when something
# changes, up to every ten seconds or so. After a longer gap nobody knows.
_LONGEST_STEP_SECONDS: Final = 30.0
_SHORTEST_STEP_SECONDS: Final = 0.001

Position = tuple[float, float]
"""Latitude and longitude in degrees of WGS 84."""


def haversine(one: Position, other: Position) -> float:
    """Meters between two points on a sphere: R. W. Sinnott, "Virtues of the Haversine", Sky & Telescope 68 (1984)."""
    latitude, other_latitude = math.radians(one[0]), math.radians(other[0])
    across = math.sin((other_latitude - latitude) / 2) ** 2
    along = math.sin(math.radians(other[1] - one[1]) / 2) ** 2
    root = across + math.cos(latitude) * math.cos(other_latitude) * along
    return 2 * EARTH_RADIUS_METERS * math.asin(min(1.0, math.sqrt(root)))


def checked_position(latitude: float, longitude: float) -> Position:
    """Both as a position. Raises Failure(FIELD_INVALID) for one that is not on Earth."""
    if not (abs(latitude) <= 90 and abs(longitude) <= 180):  # NaN is neither
        raise invalid("file", "holds a position that is not on Earth")
    return latitude, longitude


def first(*values: float | None) -> float | None:
    """The first of `values` that is known."""
    return next((one for one in values if one is not None), None)


class Mean:
    """The mean and the maximum of what was added, each with its weight."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._weight = 0.0
        self.maximum: float | None = None

    def add(self, value: float | None, weight: float = 1.0) -> None:
        """Takes a value; None is none, and neither is one that is not finite."""
        if value is None or not math.isfinite(value):
            return
        self._sum += value * weight
        self._weight += weight
        if self.maximum is None or value > self.maximum:
            self.maximum = value

    @property
    def value(self) -> float | None:
        """The mean; None of nothing."""
        return self._sum / self._weight if self._weight > 0 else None


class Climb:
    """Elevation gain with a threshold: a rise counts when it is more than 3 m above the last level that counted, and a
    fall of more than 3 m sets that level anew; GoldenCheetah's ElevationGain metric does the same.
    """

    def __init__(self) -> None:
        self.gain: float | None = None
        self._level = 0.0

    def add(self, altitude: float | None) -> None:
        """Takes the next altitude, in meters."""
        if altitude is None or not math.isfinite(altitude):
            return
        if self.gain is None:
            self.gain, self._level = 0.0, altitude
        elif altitude > self._level + CLIMB_THRESHOLD_METERS:
            self.gain += altitude - self._level
            self._level = altitude
        elif altitude < self._level - CLIMB_THRESHOLD_METERS:
            self._level = altitude


class Track:
    """What the points so far add up to."""

    def __init__(self) -> None:
        self.start: datetime | None = None
        self.heart_rate = Mean()
        self.power = Mean()
        self.cadence = Mean()
        self.climb = Climb()
        self._meters: float | None = None
        self._running = timedelta()
        self._segment: tuple[datetime, datetime] | None = None
        self._last: Position | None = None
        self._time: datetime | None = None

    @property
    def distance(self) -> float | None:
        """Meters from point to point, pauses left out; None when no point has a position."""
        return self._meters

    @property
    def duration(self) -> float | None:
        """Seconds from the first to the last point of each segment, added up; None when no point has a time."""
        if self.start is None:
            return None
        begin, end = self._segment or (self.start, self.start)
        return (self._running + (end - begin)).total_seconds()

    def point(
        self,
        *,
        time: datetime | None = None,
        position: Position | None = None,
        altitude: float | None = None,
        heart_rate: float | None = None,
        power: float | None = None,
        cadence: float | None = None,
    ) -> None:
        """Takes the next point. A heart rate or cadence of 0 is a sensor without contact or a foot at rest."""
        weight = self._step(time)
        if time is not None:
            self.start = time if self.start is None else min(self.start, time)
            begin, end = self._segment or (time, time)
            self._segment = min(begin, time), max(end, time)
        if position is not None:
            step = haversine(self._last, position) if self._last else 0.0
            self._meters = (self._meters or 0.0) + step
            self._last = position
        self.climb.add(altitude)
        self.heart_rate.add(heart_rate or None, weight)
        self.power.add(power, weight)
        self.cadence.add(cadence or None, weight)

    def pause(self) -> None:
        """Ends a segment: what lies between its last point and the next one counts neither as way nor as time."""
        if self._segment is not None:
            self._running += self._segment[1] - self._segment[0]
        self._segment = self._last = self._time = None

    def _step(self, time: datetime | None) -> float:
        """Seconds since the point before, within reason; 1 when nobody knows."""
        before, self._time = self._time, time
        if before is None or time is None:
            return 1.0
        return min(max((time - before).total_seconds(), _SHORTEST_STEP_SECONDS), _LONGEST_STEP_SECONDS)
