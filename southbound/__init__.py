"""Goal-state messages between controller and agent, and how they are framed. Shared by both ends."""
