"""What every process needs around its loop: signals, seeds, the run's directory, checkpoints.

Nothing is imported here, so that a process without torch can use the parts that need none.
"""
