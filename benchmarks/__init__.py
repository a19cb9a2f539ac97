"""Benchmarks: losses, training, natural gradients, recurrences, memory, each beside its peers."""
