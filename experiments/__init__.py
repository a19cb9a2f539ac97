"""The paper's experiments: what is run, how, what it says, and how that is shown."""
