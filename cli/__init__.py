"""The command line: it parses, calls the library, and prints. Installed as `specdiag_cli`."""
