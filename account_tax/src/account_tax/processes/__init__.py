"""Processes: who they are, their groups, their ends."""
