"""Data sets from wherever they are: Parquet of one's own, published ones, the catalogue log, judgement lists."""
