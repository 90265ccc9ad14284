"""Records: whatever a phone owns, under its user, with a version and a place in the user's feed."""
