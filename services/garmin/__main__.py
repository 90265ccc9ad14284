"""Runs the Garmin connector: `python -m services.garmin`."""

from runtime.server import main
from services.garmin.app import service

main({"garmin": service})
