"""One file a verb: what a command does, as a function of the library."""
