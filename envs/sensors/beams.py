"""Beam tables of spinning LiDARs: elevation and azimuth offset of every laser, in degrees, lowest beam first."""

# Nominal HDL-64E calibration (simulation.md 3.2, after the table published with tier4/nebula): two blocks of 32
# lasers with different spacing. Units of the same type differ by some tenths of a degree.
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
# HDL-32E: 4/3 degree steps, all lasers in one plane.
HDL_32E_ELEVATION: tuple[float, ...] = tuple(round(-92.0 / 3.0 + 4.0 / 3.0 * i, 4) for i in range(32))
HDL_32E_AZIMUTH_OFFSET: tuple[float, ...] = (0.0,) * 32
