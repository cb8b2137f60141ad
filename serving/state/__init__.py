"""What Redis holds: what people did lately, answers by request id, events on their way to other servers."""
