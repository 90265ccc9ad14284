"""Accounts, sign-ins and their tokens."""
