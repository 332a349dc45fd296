"""The review of registered versions: evidence, gates, report, decision, history."""
