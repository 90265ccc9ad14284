"""Simulated phones, so that somebody who has just started Satchel sees it at work."""
