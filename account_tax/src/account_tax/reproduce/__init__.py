"""Reproduce: a registered version checked rung by rung, from its bytes to a training of its own."""
