"""Runs the auth service: `python -m services.auth`."""

from runtime.server import main
from services.auth.app import service

main({"auth": service})
