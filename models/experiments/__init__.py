"""The accuracy tables of the papers, at a size that a small machine computes in about half an hour each.

    synthetic      noisy scores of true label maps, refined by every filter (ConvCRF's table 1)
    lattice        the error of the lattice against the exact sum that it approximates
    decoupled      CRFs trained on a fixed network (ConvCRF's table 2)
    end_to_end     networks and CRFs trained together (ConvCRF's table 3, CRF-RNN's table 1)
    defaults       default settings on the scores of several networks
    video          scores of a video, refined frame by frame and as a volume: the share of labels that flicker
    segmodel       SegModel part by part, and the time of each part (SegModel's tables 3 and 4)

Each writes NAME.md, NAME.csv and figures. `results` has our results; it is not part of the package.
`statistics` computes the error bars, `trained` trains the runs of decoupled, end_to_end and segmodel.
"""
