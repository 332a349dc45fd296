"""The parameters: from words and files to typed, checked values."""
