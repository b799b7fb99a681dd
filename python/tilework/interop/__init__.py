"""Other runtimes on tilework's kernels. Each module is imported on demand and needs its runtime installed."""
