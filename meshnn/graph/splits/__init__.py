"""Splits inside a run of operators: which part needs and makes which box, told from the card; and the parts' files.

`layout` answers for a card what every part reads and makes, `shard` cuts a part's file from the graph, `merge` puts
parts together, `balance` chooses boundaries. Boxes are ((start, stop) per axis).
"""
