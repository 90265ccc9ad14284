"""Runs the sessions service: `python -m services.sessions`."""

from runtime.server import main
from services.sessions.app import service

main({"sessions": service})
