"""Brings the mesh up: the edge's configuration and the embedded stack of `make run`."""
