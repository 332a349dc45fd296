"""What a version is made of, and the proof of it."""
