"""The parts of `bench/peers/run`. Nothing but Python's standard library."""
