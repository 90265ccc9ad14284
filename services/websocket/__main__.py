"""Runs the WebSocket door: `python -m services.websocket`."""

from runtime.server import main
from services.websocket.app import service

main({"websocket": service})
