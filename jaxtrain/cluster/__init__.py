"""Many machines, on Ray: thin adapters, imported by the command line alone, and Ray by nothing without the option."""
