"""Simulators and sensors in plain numpy. Knows no torch."""
