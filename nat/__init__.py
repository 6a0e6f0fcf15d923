"""NAT networks: source translation per uplink address, static mappings, delivery by bridge or uplink."""
