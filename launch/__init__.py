"""Entry points: parse the command line, call the library, exit."""
