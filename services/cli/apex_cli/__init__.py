"""The ``apex`` command: train on this machine, evaluate, record, inspect."""
