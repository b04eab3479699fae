"""Training records at scale: what users bring, and the shards that runs read."""
