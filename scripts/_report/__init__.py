"""What a run's report is made of: records to sentences, charts and HTML."""
