"""A connector: an account at Garmin, polled into records and files."""
