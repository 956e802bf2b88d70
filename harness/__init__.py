"""What every run shares: command line, loop, evaluation, tools on finished runs; it knows no algorithm by name."""
