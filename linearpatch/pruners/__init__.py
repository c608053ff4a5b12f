"""Methods that choose the removed layers: one file each."""
