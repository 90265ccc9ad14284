"""What people run against a Satchel, from a terminal or a script."""
