"""Files that must be whole: the cache, leases, atomic writes, and what looks after them."""
