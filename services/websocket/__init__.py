"""The WebSocket door: JSON frames on one side, the Sync stream on the other."""
