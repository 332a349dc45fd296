"""What is said of a version and shown beside it, whichever command says it."""
