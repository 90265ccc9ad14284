"""Runs every service in one process: `python -m services`."""

from runtime.server import main
from services.auth.app import service as auth
from services.garmin.app import service as garmin
from services.health.app import service as health
from services.sessions.app import service as sessions
from services.uploads.app import service as uploads
from services.websocket.app import service as websocket

main(
    {
        "auth": auth,
        "sessions": sessions,
        "uploads": uploads,
        "health": health,
        "garmin": garmin,
        "websocket": websocket,
    }
)
