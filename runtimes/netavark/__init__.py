"""The plug-in of netavark (plugin-API 1.0.0, netavark >= 1.6), with which Podman sets up containers."""
