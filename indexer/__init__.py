"""The index: store, routing, posting lists, rebalancing, retrieval, verification. Knows no torch and no Kafka."""
