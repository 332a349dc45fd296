"""What can be known about a run elsewhere before it is submitted; nothing is started or changed."""
