"""Everything offline: data, examples, training, export, replay, evaluation, reports and the command line."""
