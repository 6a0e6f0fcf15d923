"""The CNI plug-in `sluice-cni`, spec 1.1 (https://www.cni.dev/docs/spec/): one process a call, so it imports little.

No dataclasses, no `typing`, no `re`: each would cost more than all that the plug-in itself does.
"""
