"""Runs the health service: `python -m services.health`."""

from runtime.server import main
from services.health.app import service

main({"health": service})
