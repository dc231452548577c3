"""The engine of configurations: defaults <- YAML <- command line.

The keys themselves stand in the `config.py` of the room that they configure.
"""
