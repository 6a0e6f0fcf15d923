"""The rule-flow engine: policy is layers, traffic is flows. Knows nothing of networks or their owners."""
