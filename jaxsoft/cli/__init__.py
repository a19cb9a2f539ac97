"""The command line: options, configuration, and from them the parts of a run."""
