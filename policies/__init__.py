"""Policies and planners that act in `envs` with what `worldmodel` and `lidar` learned."""
