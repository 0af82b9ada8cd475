"""mapped-ram: several processes read the pages of a file at once, each its share of every block.

The transport process reads what is before, between and behind the pages, and passes these by.
When it has the list of RAM blocks and memory is made, the coordinator has the readers fill it, and
only then lets the stream go on.
"""
