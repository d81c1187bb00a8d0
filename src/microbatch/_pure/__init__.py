"""Values and decisions: no event loop, no clock, no I/O, no log; what the time is comes in as an argument."""
