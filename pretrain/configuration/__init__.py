"""The engine of configurations: defaults <- YAML <- command line."""
