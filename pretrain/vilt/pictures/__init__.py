"""What a model of pairs answers and where it looks: for the report and the trackers."""
