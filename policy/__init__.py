"""What every network has: the contract of features, and the layers `guard` and `acl`."""
