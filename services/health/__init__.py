"""The state of the mesh."""
