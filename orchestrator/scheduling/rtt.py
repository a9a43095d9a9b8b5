"""How long a packet takes from one site to another and back, estimated until it is measured.

Used by the rule `near`. Light in fibre travels at two thirds of its speed in vacuum, about 200 km
per millisecond; cables are longer than the great circle, by a factor of about 1.5 in Europe
(RIPE Atlas anchors, and the usual planning figure of ITU-T G.1050 networks); and each end adds
switching and queueing of about half a millisecond.

    rtt_ms = 2 * (great_circle_km * 1.5 / 200) + 2 * 0.5      between sites
    rtt_ms = 0.5                                              within a site

The great circle follows the haversine formula on a sphere of 6371.0088 km (IUGG mean radius).
"""

import numpy as np
import numpy.typing as npt

EARTH_RADIUS_KM = 6371.0088
FIBRE_KM_PER_MS = 200.0
ROUTE_FACTOR = 1.5
OVERHEAD_MS_PER_END = 0.5
WITHIN_SITE_MS = 0.5

Floats = npt.NDArray[np.float64]


def great_circle_km(
    latitude: float, longitude: float, latitudes: Floats, longitudes: Floats
) -> Floats:
    """From one point to many; degrees. NaN where a point is not known."""
    a, b = np.radians(latitude), np.radians(latitudes)
    half_lat = (b - a) / 2
    half_lon = (np.radians(longitudes) - np.radians(longitude)) / 2
    chord = np.sin(half_lat) ** 2 + np.cos(a) * np.cos(b) * np.sin(half_lon) ** 2
    distance: Floats = 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.clip(chord, 0.0, 1.0)))
    return distance


def rtt_ms(distance_km: Floats) -> Floats:
    """Between two sites that far apart."""
    return 2 * distance_km * ROUTE_FACTOR / FIBRE_KM_PER_MS + 2 * OVERHEAD_MS_PER_END
