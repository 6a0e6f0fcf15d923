"""What user space does with packets that policy sends it: queues, the inspector's contract, and the DNS inspector."""
