"""Runs the uploads service: `python -m services.uploads`."""

from runtime.server import main
from services.uploads.app import service

main({"uploads": service})
