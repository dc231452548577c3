"""The parts of report.py: records to sentences, charts and HTML."""
