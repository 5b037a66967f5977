"""The learner: draws batches, updates the networks, writes priorities back, and hands parameters out."""
