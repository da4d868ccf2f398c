"""Sensors that look at a world of triangles."""
