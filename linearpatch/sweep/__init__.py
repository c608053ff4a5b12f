"""Many runs: what they share is computed once, each has its own process, and what is finished stays finished."""
