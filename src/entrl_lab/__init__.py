"""The laboratory: studies, conformance, replay, the building of shipped models. Knows everything; nobody knows it."""
