"""What benchmarks/fuse.py is made of: inputs, processes timed, peers, tables."""
