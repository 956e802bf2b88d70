"""Many runs: the matrix that asks for them, their check, their execution here or on a cluster, and their results."""
