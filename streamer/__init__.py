"""Events in: sources, batching, the writer loop, dead letters, daemon, command line."""
