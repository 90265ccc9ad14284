"""Files from phones."""
