"""Ranks on the hosts of a hostfile, started by ssh."""
