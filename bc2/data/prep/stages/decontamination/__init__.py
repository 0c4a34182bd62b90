"""Read the texts of benchmarks, and find them in documents."""
