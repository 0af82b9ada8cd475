"""multifd: pages travel over several connections at once, each fed by a worker of its own.

    worker 0 -> channel 0 (packets)            worker 1 -> channel 1 (packets)  ...
        `-> ring -> transport process -> main channel (zero records, sync points) <- ring <-'

Between two sync points no page is sent twice. A round ends with a SYNC packet of each worker, and
then the sync point on the main channel, so no round overtakes the one before it.
"""
