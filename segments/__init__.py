"""Networks that are a part of the physical segment behind an uplink: transparent, l2bridge and l2tunnel."""
