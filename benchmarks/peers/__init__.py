"""What the benchmarks compare with: other libraries, each installed by hand where it is wanted."""
