"""Writing files so that nothing is ever half-written, sealing them, and locking output folders."""
