"""The actor: plays, judges what it lived through, and sends it to replay. The evaluator is the same program."""
