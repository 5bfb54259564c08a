"""Checks that a run is sound: agreement of ranks, memory, finite values, equal replicas."""
