"""Overlay networks: CA to PA mappings by VNI, ARP answered locally, a distributed gateway."""
