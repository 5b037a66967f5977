"""Neural networks. Modules only: no losses, no optimisers, no devices."""
