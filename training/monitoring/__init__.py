"""What a log's last days look like beside the days before: drift, broken data, and whether to train again."""
