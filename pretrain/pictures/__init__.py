"""Pictures of what was learnt, for the report and the trackers."""
