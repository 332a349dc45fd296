"""A registered version met from outside: found, downloaded, checked, read."""
