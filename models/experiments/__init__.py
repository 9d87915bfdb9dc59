"""The accuracy tables of the papers, made again at a size that a small machine computes in half an hour each.

    synthetic      noisy scores of true label maps, refined by every filter (ConvCRF's table 1)
    lattice        how far the lattice is from the exact sum that it approximates
    decoupled      CRFs that learn on a network which stays as it is (ConvCRF's table 2)
    end_to_end     networks and CRFs that learn together (ConvCRF's table 3, CRF-RNN's table 1)
    defaults       settings that nobody chose, on the scores of several networks
    video          scores of a video, refined frame by frame and as a volume: how many labels flicker
    segmodel       SegModel part by part, and the time of each (SegModel's tables 3 and 4)

Each writes NAME.md, NAME.csv and figures; what came out here is in `results`, which is no part of the package.
`statistics` has the error bars, `trained` the runs of the last three.
"""
