"""The command line of mergekit3d, installed as ``mergekit3d_cli``: parse, call one function of the library, print."""
