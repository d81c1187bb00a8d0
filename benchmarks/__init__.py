"""What microbatch costs and what it gains: `python -m benchmarks NAME`. The figures stand in README.md."""
