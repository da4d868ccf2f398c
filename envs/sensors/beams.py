"""Beam tables of spinning LiDARs, lowest beam first: elevation and azimuth offset (degrees), height (metres)."""

# Nominal HDL-64E calibration (simulation.md 3.2, after the table published with tier4/nebula): two blocks of
# 32 lasers with different spacing. Units of the same type differ by some tenths of a degree.
HDL_64E_ELEVATION: tuple[float, ...] = (
    *(-24.711, -24.276, -23.763, -23.250, -22.738, -22.226, -21.715, -21.204),
    *(-20.693, -20.183, -19.673, -19.163, -18.558, -18.144, -17.634, -17.125),
    *(-16.615, -16.106, -15.596, -15.087, -14.577, -14.067, -13.557, -13.047),
    *(-12.536, -12.025, -11.514, -11.002, -10.490, -9.977, -9.464, -8.950),
    *(-8.521, -8.180, -7.839, -7.499, -7.158, -6.818, -6.478, -6.138),
    *(-5.798, -5.458, -5.118, -4.778, -4.439, -4.099, -3.759, -3.420),
    *(-3.080, -2.741, -2.401, -2.061, -1.722, -1.382, -1.042, -0.702),
    *(-0.362, -0.022, 0.318, 0.658, 0.999, 1.339, 1.680, 2.021),
)
# The lasers of one firing do not lie in one vertical plane: a column is spread over about 19 degrees.
HDL_64E_AZIMUTH_OFFSET: tuple[float, ...] = (
    *(-1.0, 2.0, 6.0, 9.5, -7.0, -3.5, -0.5, 3.5, 7.0, 10.0, -8.0, -5.0, -1.0, 2.0, 6.0, 9.0),
    *(-6.5, -3.25, 0.0, 3.2, 7.0, 9.5, -8.0, -4.5, -1.0, 1.8, 5.5, 8.5, -6.0, -3.5, 0.0, 2.5),
    *(0.0, 1.3, 4.0, 6.0, -4.0, -2.25, 0.8, 2.25, 4.7, 6.5, -4.8, -2.75, 0.0, 1.75, 4.0, 6.0),
    *(-3.9, -2.0, 0.5, 2.25, 4.9, 6.25, -4.5, -2.7, -0.25, 1.7, 4.0, 6.0, -3.5, -2.0, 0.6, 2.0),
)
# KITTI's own HDL-64E, measured: on each ring of real scans z / r = tan(elevation) + height / r holds to the
# rounding of the files, which gives both by least squares (r: horizontal range; 24 scans of the object set).
KITTI_HDL_64E_ELEVATION: tuple[float, ...] = (
    *(-25.00, -24.51, -23.97, -23.32, -22.86, -22.44, -21.94, -21.32),
    *(-20.79, -20.22, -19.74, -19.32, -18.80, -18.32, -17.73, -17.19),
    *(-16.55, -16.18, -15.66, -15.19, -14.60, -14.05, -13.48, -13.04),
    *(-12.56, -12.11, -11.60, -10.96, -10.47, -10.06, -9.57, -9.03),
    *(-8.71, -8.31, -8.06, -7.68, -7.29, -7.00, -6.68, -6.33),
    *(-5.96, -5.61, -5.25, -4.91, -4.59, -4.22, -3.94, -3.54),
    *(-3.24, -2.87, -2.55, -2.21, -1.83, -1.49, -1.20, -0.80),
    *(-0.45, -0.09, 0.18, 0.58, 0.87, 1.30, 1.57, 1.94),
)
# The lasers sit above the origin of the sensor frame: lower block 0.116 to 0.126 m, upper block 0.198 to 0.209 m.
KITTI_HDL_64E_HEIGHT: tuple[float, ...] = (
    *(round(0.116 + 0.010 * i / 31, 4) for i in range(32)),
    *(round(0.198 + 0.011 * i / 31, 4) for i in range(32)),
)
# HDL-32E: 4/3 degree steps, all lasers in one plane.
HDL_32E_ELEVATION: tuple[float, ...] = tuple(round(-92.0 / 3.0 + 4.0 / 3.0 * i, 4) for i in range(32))
HDL_32E_AZIMUTH_OFFSET: tuple[float, ...] = (0.0,) * 32
