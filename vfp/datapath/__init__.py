"""The engine in the kernel: loading, maps, programs, and what the kernel offers. Linux and root only."""
