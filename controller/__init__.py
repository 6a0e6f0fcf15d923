"""The controller: declared resources, store, address management, planner (intent to goal state) and push."""
