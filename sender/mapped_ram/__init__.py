"""mapped-ram: every page has a place in the file, and several workers write there at once.

    coordinator -> header, list of RAM blocks, bitmaps     worker 0 -> its pages    worker 1 -> ...
        `-> ring -> transport process -> what follows the pages, in order

A round carries nothing on the main channel: a page that is sent again is overwritten, one that has
become zero loses its bit. The bitmaps, and then the stream's first bytes, are written when all
pages and devices are there, so what a failed save leaves behind is no stream, not even over an
older one.
"""
